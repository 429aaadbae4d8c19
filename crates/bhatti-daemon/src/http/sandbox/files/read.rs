//! `GET` and `HEAD /sandboxes/:sandbox/files`: a file, a part of one, a list, a look

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::{FileInfo, octal, route};
use bhatti_guest_client::{
    ByteRange, Directory, FileContent, FileInfo as GuestFile, FileKind, FilePart, LineRange,
};

use super::{Use, Words, failed, find, outgoing};
use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// `HEAD`: size, mode and kind of what the path leads to.
pub(in crate::http) async fn look(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    Query(query): Query<Words>,
) -> Result<Response, ApiError> {
    let (row, path) = find(&api, &caller, &sandbox, &query).await?;
    let used = Use::of(&api, &row).await?;
    let looked = used.lease.guest().stat_file(&path).await.map_err(failed);
    let answered = looked.map(|info| {
        let headers = [
            (HeaderName::from_static(route::FILE_SIZE_HEADER), info.size.to_string()),
            (HeaderName::from_static(route::FILE_MODE_HEADER), octal(info.mode)),
            (HeaderName::from_static(route::FILE_IS_DIR_HEADER), is_dir(&info).to_string()),
        ];
        let mut response = (headers, Body::empty()).into_response();
        if info.kind == FileKind::Regular {
            // As GET says it; otherwise it would be the length of nothing.
            response.headers_mut().insert(header::CONTENT_LENGTH, info.size.into());
        }
        response
    });
    Ok(used.answer(answered))
}

/// `GET`: the content as it is read, or the list of a directory.
pub(in crate::http) async fn read(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    Query(query): Query<Words>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (row, path) = find(&api, &caller, &sandbox, &query).await?;
    let used = Use::of(&api, &row).await?;
    let answered = if query.get("ls").is_some_and(|ls| ls == "true") {
        let listed = used.lease.guest().list_directory(&path).await;
        listed.map(|directory| Written(StatusCode::OK, shown(directory)).into_response())
    } else {
        let wanted = lines(&query).or_else(|| range(&headers));
        let opened = used.lease.guest().read_file(&path, wanted).await;
        opened.map(|file| content(file, wanted, &used))
    };
    Ok(used.answer(answered.map_err(failed)))
}

fn content(file: FileContent, wanted: Option<FilePart>, used: &Use) -> Response {
    let FileContent { info, offset, length, content } = file;
    let is_range = matches!(wanted, Some(FilePart::Bytes(_) | FilePart::Tail(_)));
    let (status, span) = match length {
        Some(0) if is_range => {
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(format!("bytes */{}", info.size)))
        }
        Some(length) if is_range => {
            let last = offset.saturating_add(length) - 1;
            (StatusCode::PARTIAL_CONTENT, Some(format!("bytes {offset}-{last}/{}", info.size)))
        }
        _ => (StatusCode::OK, None),
    };
    let mut response = (status, outgoing(content, used.lease.clone())).into_response();
    let mut say = |name: HeaderName, value: String| {
        // Digits and the words above.
        if let Ok(value) = value.try_into() {
            response.headers_mut().insert(name, value);
        }
    };
    say(header::CONTENT_TYPE, "application/octet-stream".to_owned());
    say(header::ACCEPT_RANGES, "bytes".to_owned());
    say(HeaderName::from_static(route::FILE_SIZE_HEADER), info.size.to_string());
    if let Some(span) = span {
        say(header::CONTENT_RANGE, span);
    }
    if let Some(length) = length {
        say(header::CONTENT_LENGTH, length.to_string());
    }
    response
}

/// Lines are asked for with a limit; `offset` alone means nothing.
fn lines(query: &Words) -> Option<FilePart> {
    let number = |name| query.get(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let (first, count, max_bytes) = (number("offset"), number("limit"), number("max_bytes"));
    (count > 0 || max_bytes > 0).then_some(FilePart::Lines(LineRange { first, count, max_bytes }))
}

/// One range of bytes. Whatever else the header says is not understood, and then all of the file
/// is an answer too.
fn range(headers: &HeaderMap) -> Option<FilePart> {
    let range = headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    match range.trim().split_once('-')? {
        ("", tail) => Some(FilePart::Tail(number(tail)?)),
        (first, "") => Some(FilePart::Bytes(ByteRange { offset: number(first)?, length: 0 })),
        (first, last) => {
            let (offset, last) = (number(first)?, number(last)?);
            let length = last.checked_sub(offset)?.saturating_add(1);
            Some(FilePart::Bytes(ByteRange { offset, length }))
        }
    }
}

/// Digits only: what else counts as a number in Rust does not in HTTP.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn is_dir(info: &GuestFile) -> bool {
    info.kind == FileKind::Directory
}

fn shown(directory: Directory) -> Vec<FileInfo> {
    let listed = directory.entries.len();
    let entries = directory.entries.into_iter().map(|entry| FileInfo {
        is_dir: is_dir(&entry),
        mode: octal(entry.mode),
        name: entry.name,
        size: entry.size,
        mtime: entry.mtime,
    });
    let rest =
        (directory.total > listed as u64).then(|| FileInfo::truncated(listed, directory.total));
    entries.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Words {
        let pair = |pair: &str| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        text.split('&').filter_map(pair).collect()
    }

    #[test]
    fn lines_need_a_limit() {
        let wanted =
            |first, count, max_bytes| Some(FilePart::Lines(LineRange { first, count, max_bytes }));
        assert_eq!(lines(&words("offset=3&limit=2")), wanted(3, 2, 0));
        assert_eq!(lines(&words("max_bytes=10")), wanted(0, 0, 10));
        assert_eq!(lines(&words("offset=x&limit=2&max_bytes=-1")), wanted(0, 2, 0));
        for whole in ["", "offset=3", "limit=0", "limit=-1", "limit=x"] {
            assert_eq!(lines(&words(whole)), None, "{whole}");
        }
    }

    #[test]
    fn one_range_of_bytes_is_understood() {
        let range = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().expect("a header"));
            super::range(&headers)
        };
        let bytes = |offset, length| Some(FilePart::Bytes(ByteRange { offset, length }));
        assert_eq!(range("bytes=0-0"), bytes(0, 1));
        assert_eq!(range("bytes=5-9"), bytes(5, 5));
        assert_eq!(range("bytes=5-"), bytes(5, 0));
        assert_eq!(range("bytes=-5"), Some(FilePart::Tail(5)));
        for whole in ["bytes=", "bytes=-", "bytes=5-4", "bytes=0-1,3-4", "lines=1-2", "bytes=+1-2"]
        {
            assert_eq!(range(whole), None, "{whole}");
        }
        assert_eq!(super::range(&HeaderMap::new()), None);
    }
}
