//! Requests to the console as a browser sends them.

use reqwest::{Method, RequestBuilder};

use super::Api;

/// A response of the console.
pub struct Page {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub html: String,
}

impl Page {
    /// Sends the request and reads the response.
    pub async fn of(request: RequestBuilder) -> Page {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let html = response.text().await.unwrap();
        Page {
            status,
            headers,
            html,
        }
    }

    /// Returns the value of a header, or an empty string if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the value of the first attribute with this name after the text `after`.
    #[track_caller]
    pub fn attribute(&self, after: &str, name: &str) -> String {
        let found = self
            .html
            .split_once(after)
            .and_then(|(_, rest)| rest.split_once(&format!("{name}=\"")));
        let (_, rest) = found.unwrap_or_else(|| panic!("no {name} after {after} in {}", self.html));
        rest.split_once('"')
            .unwrap()
            .0
            .replace("&#38;", "&")
            .replace("&amp;", "&")
    }

    /// Asserts the status, and that the page contains the text.
    #[track_caller]
    pub fn has(&self, status: u16, text: &str) {
        assert!(
            self.status == status && self.html.contains(text),
            "{status} {text:?}: {} {}",
            self.status,
            self.html
        );
    }
}

/// Requests a page as the admin.
pub async fn get_page(api: &Api, path: &str) -> Page {
    Page::of(api.request(Method::GET, path)).await
}

/// Builds the request of a form of the console, as the admin.
pub fn post_form(api: &Api, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
    let mut body = url::form_urlencoded::Serializer::new(String::new());
    api.request(Method::POST, path)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("sec-fetch-site", "same-origin")
        .body(body.extend_pairs(fields).finish())
}

/// Submits the search form with this text.
pub async fn search(api: &Api, text: &str) -> Page {
    let form_token = get_page(api, "/console/search")
        .await
        .attribute("formToken", "value");
    let fields = [("formToken", &*form_token), ("text", text)];
    Page::of(post_form(api, "/console/search", &fields)).await
}
