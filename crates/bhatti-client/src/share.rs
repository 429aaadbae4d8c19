//! `/sandboxes/:s/shell-token`: links to a sandbox's web shell.

use bhatti_api::{ShellToken, route};
use http::Method;

use crate::client::Call;
use crate::{Client, ClientError};

impl Client {
    /// `POST`: a new link, in place of the one before. Its address is one that works from here.
    pub async fn share(&self, sandbox: &str) -> Result<ShellToken, ClientError> {
        let path = route::shell_token(sandbox);
        let mut shared: ShellToken = self.json(Call::new(Method::POST, &path)).await?.0;
        if let Some((_, page)) = shared.url.split_once(":///") {
            // The server does not know how it is reached.
            shared.url = format!("{}/{page}", self.endpoint());
        } else if shared.url.is_empty() {
            let id = self.get(sandbox).await?.id;
            let page = route::web_shell(&id);
            shared.url = format!("{}{page}#token={}", self.endpoint(), shared.token);
        }
        Ok(shared)
    }

    /// `DELETE`: the link opens nothing any more, and who is in the shell is put out.
    pub async fn unshare(&self, sandbox: &str) -> Result<(), ClientError> {
        self.json(Call::new(Method::DELETE, &route::shell_token(sandbox))).await.map(|((), _)| ())
    }
}
