//! `/sandboxes/:s/publish`: ports with a public URL.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `POST /sandboxes/:s/publish`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Publish {
    pub port: i64,
    /// Empty: one is made up.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub alias: String,
    /// Only for who has a token, which is made anew. Without this a rule stays as it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub auth: bool,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub alias: String,
    pub created_at: Timestamp,
    pub id: String,
    pub port: u16,
    pub sandbox_id: String,
    /// Where it is reached, or [`NO_PUBLIC_PROXY`] and the alias.
    pub url: String,
    /// It asks for a token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auth: bool,
    /// The token, if one was made just now: it is shown once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The URL with it, for browsers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// `GET /sandboxes/:s/publish`: one of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRule {
    pub id: String,
    pub sandbox_id: String,
    pub user_id: String,
    pub port: u16,
    pub alias: String,
    pub created_at: Timestamp,
    pub url: String,
    /// It asks for a token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auth: bool,
}

/// What a token is called in a URL and as a cookie.
pub const TOKEN_NAME: &str = "bhatti_token";

/// The header for programs; `Authorization: Bearer` will do as well.
pub const TOKEN_HEADER: &str = "x-bhatti-token";

/// In place of a URL where a server has nothing that answers one.
pub const NO_PUBLIC_PROXY: &str = "no public proxy configured";
