//! `/openapi.json` and `/docs/`: the API description for programs and for people.

use std::sync::{Arc, LazyLock};

use actix_web::http::header::{self, ContentEncoding};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use utoipa_swagger_ui::{Config, serve};

use crate::api::extract::query::reject_parameters;
use crate::api::problem::Problem;

/// The OpenAPI document as JSON, built at the first request.
pub struct OpenApiDocument(pub &'static LazyLock<Bytes>);

/// Allows the page's own files and the `data:` images in its style sheet.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The Swagger UI page. Its URLs are absolute because `/docs` works without its final slash too.
const PAGE: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>token-vendor</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="/docs/favicon-32x32.png">
</head>
<body>
<main id="swagger-ui"></main>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"#;

/// Starts Swagger UI. The validator is off because it is an external service.
const START: &str = r##"SwaggerUIBundle({dom_id: "#swagger-ui", url: "/openapi.json", deepLinking: true, validatorUrl: null});"##;

/// `GET /openapi.json`. Returns the same document as `token-vendor openapi`.
pub async fn get_openapi(
    request: HttpRequest,
    document: web::Data<OpenApiDocument>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    Ok(HttpResponse::Ok()
        .content_type(header::ContentType::json())
        .body(Bytes::clone(document.0)))
}

/// `GET /docs/`. Returns the Swagger UI page.
pub async fn get_docs(request: HttpRequest) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    Ok(HttpResponse::Ok()
        .content_type(header::ContentType::html())
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .body(PAGE))
}

/// `GET /docs/{file}`. Returns a file of Swagger UI.
pub async fn get_docs_file(
    request: HttpRequest,
    file: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let mut response = HttpResponse::Ok();
    if *file == "start.js" {
        return Ok(response.content_type("text/javascript").body(START));
    }
    let file = serve(&file, Arc::new(Config::default())).map_err(Problem::internal)?;
    let file = file.ok_or_else(|| Problem::not_found("there is nothing at this path"))?;
    if file.gzpipped {
        response.insert_header(ContentEncoding::Gzip);
    }
    Ok(response
        .content_type(file.content_type)
        .body(file.bytes.into_owned()))
}
