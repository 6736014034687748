//! Pages of the console, as a browser gets them and posts their forms.

use reqwest::{Method, RequestBuilder};

use super::Api;

/// A page, or whatever came instead.
pub struct Page {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub html: String,
}

impl Page {
    pub async fn of(request: RequestBuilder) -> Page {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let html = answer.text().await.unwrap();
        Page {
            status,
            headers,
            html,
        }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The first value of that attribute after that text.
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

pub async fn get_page(api: &Api, path: &str) -> Page {
    Page::of(api.request(Method::GET, path)).await
}

/// A form as a browser posts it from a page of the console.
pub fn post_form(api: &Api, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
    let mut body = url::form_urlencoded::Serializer::new(String::new());
    api.request(Method::POST, path)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("sec-fetch-site", "same-origin")
        .body(body.extend_pairs(fields).finish())
}

pub async fn search(api: &Api, text: &str) -> Page {
    let form_token = get_page(api, "/console/search")
        .await
        .attribute("formToken", "value");
    let fields = [("formToken", &*form_token), ("tokenString", text)];
    Page::of(post_form(api, "/console/search", &fields)).await
}
