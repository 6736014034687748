//! One path of the route table: the routes that actix serves and the operations that OpenAPI lists.

use actix_web::{FromRequest, Handler, HttpRequest, Resource, Responder, guard, web};
use uuid::Uuid;

use crate::api::extract::authorization::{Authorized, RequiredScope};
use crate::api::extract::body::Body;
use crate::api::extract::client_key::ClientKey;
use crate::api::middleware::request_context::Route;
use crate::api::problem::{Problem, ProblemKind};
use crate::model::{FailureKind, Scope};

/// A path segment that matches only UUIDs. Any other id returns 404 before authentication.
const UUID_SEGMENT: &str =
    "{id:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}}";

/// A path segment that matches only API keys. Any other key returns 404 before authentication.
const KEY_SEGMENT: &str = "{key:[A-Za-z0-9_-]{1,128}}";

/// A tile of the audit log, whose index has several segments.
const TILE_SEGMENTS: &str = "{tile:.+?}";

/// A path and its handlers.
pub struct Path {
    /// The path as the contract writes it.
    pub name: &'static str,
    get: Option<Method>,
    post: Option<Method>,
    patch: Option<Method>,
}

struct Method {
    route: Box<dyn Fn() -> actix_web::Route>,
    /// The OpenAPI operation. Pages for people have none.
    operation: Option<Operation>,
}

/// The parts of an OpenAPI operation that follow from the handler's name and arguments.
#[derive(Debug, Default)]
pub struct Operation {
    /// The handler's name.
    pub id: &'static str,
    /// The scope that the caller needs.
    pub scope: Option<Scope>,
    /// The parameter in the path.
    pub path_parameter: Option<&'static str>,
    /// The problems that the arguments can cause.
    pub problems: Vec<ProblemKind>,
}

impl Path {
    /// Creates a path without methods.
    pub fn new(name: &'static str) -> Self {
        Path {
            name,
            get: None,
            post: None,
            patch: None,
        }
    }

    /// Adds the handler of `GET` and `HEAD`.
    pub fn get<F, Args>(self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + DescribeArgument + 'static,
        F::Output: Responder + 'static,
    {
        let operation = Some(Operation::new::<F, Args>());
        let mut path = self.page(handler);
        path.get = path.get.map(|get| Method { operation, ..get });
        path
    }

    /// Adds the handler of `GET` and `HEAD` for a page that the OpenAPI document omits.
    pub fn page<F, Args>(mut self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        let get_or_head = || guard::Any(guard::Get()).or(guard::Head());
        self.get = Some(Method {
            route: Box::new(move || web::route().guard(get_or_head()).to(handler.clone())),
            operation: None,
        });
        self
    }

    /// Adds the handler of `POST` for a form that the OpenAPI document omits.
    pub fn form<F, Args>(mut self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.post = Some(Method {
            route: Box::new(move || web::post().to(handler.clone())),
            operation: None,
        });
        self
    }

    /// Adds the handler of `POST`.
    pub fn post<F, Args>(self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + DescribeArgument + 'static,
        F::Output: Responder + 'static,
    {
        let operation = Some(Operation::new::<F, Args>());
        let mut path = self.form(handler);
        path.post = path.post.map(|post| Method { operation, ..post });
        path
    }

    /// Adds the handler of `PATCH`.
    pub fn patch<F, Args>(mut self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + DescribeArgument + 'static,
        F::Output: Responder + 'static,
    {
        self.patch = Some(Method {
            operation: Some(Operation::new::<F, Args>()),
            route: Box::new(move || web::patch().to(handler.clone())),
        });
        self
    }

    /// Registers the path with actix, with and without its final slash.
    ///
    /// Two literal paths cost a request less than path normalisation or a regular expression.
    pub fn register(&self, config: &mut web::ServiceConfig) {
        let allow = match (&self.get, &self.post, &self.patch) {
            (Some(_), _, Some(_)) => "GET, HEAD, PATCH",
            (Some(_), Some(_), None) => "GET, HEAD, POST",
            (Some(_), None, None) => "GET, HEAD",
            _ => "POST",
        };
        let pattern = self.name.trim_end_matches('/');
        let pattern = pattern.replace("{id}", UUID_SEGMENT);
        let pattern = pattern.replace("{key}", KEY_SEGMENT);
        let with_slash = pattern.replace("{tile}", TILE_SEGMENTS) + "/";
        for pattern in [with_slash.trim_end_matches('/'), &with_slash] {
            let not_allowed =
                move || async move { Err::<String, _>(Problem::method_not_allowed(allow)) };
            let resource = web::resource(pattern)
                .app_data(Route(self.name))
                .default_service(web::to(not_allowed));
            let methods = self.get.iter().chain(&self.post).chain(&self.patch);
            config.service(methods.fold(resource, |resource: Resource, method| {
                resource.route((method.route)())
            }));
        }
    }

    /// Returns the operations of this path by lower-case method name.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, &Operation)> {
        let methods = [
            ("get", &self.get),
            ("post", &self.post),
            ("patch", &self.patch),
        ];
        methods
            .into_iter()
            .filter_map(|(name, method)| Some((name, method.as_ref()?.operation.as_ref()?)))
    }
}

impl Operation {
    fn new<F, Args: DescribeArgument>() -> Self {
        let id = std::any::type_name::<F>().rsplit("::").next();
        let mut operation = Operation {
            id: id.expect("a function has a name"),
            problems: vec![
                ProblemKind::Validation,
                ProblemKind::MethodNotAllowed,
                ProblemKind::Failed(FailureKind::Internal),
            ],
            ..Operation::default()
        };
        Args::describe(&mut operation);
        operation
    }
}

/// A handler argument that adds its scope, id or problems to the OpenAPI operation.
pub trait DescribeArgument {
    /// Adds this argument to the operation. The default adds nothing.
    fn describe(_operation: &mut Operation) {}
}

impl DescribeArgument for HttpRequest {}
impl<T: 'static> DescribeArgument for web::Data<T> {}

impl<S: RequiredScope> DescribeArgument for Authorized<S> {
    fn describe(operation: &mut Operation) {
        operation.scope = S::SCOPES.first().copied();
        operation.problems.extend([
            ProblemKind::Unauthenticated,
            ProblemKind::Forbidden,
            ProblemKind::RateLimited,
            ProblemKind::Failed(FailureKind::IssuerUnavailable),
            ProblemKind::Failed(FailureKind::DatabaseUnavailable),
        ]);
    }
}

impl DescribeArgument for Body {
    fn describe(operation: &mut Operation) {
        operation.problems.extend([
            ProblemKind::Malformed,
            ProblemKind::RequestTimeout,
            ProblemKind::BodyTooLarge,
            ProblemKind::UnsupportedMediaType,
        ]);
    }
}

impl DescribeArgument for web::Path<Uuid> {
    fn describe(operation: &mut Operation) {
        operation.path_parameter = Some("id");
        operation.problems.push(ProblemKind::NotFound);
    }
}

impl DescribeArgument for web::Path<String> {
    fn describe(operation: &mut Operation) {
        operation.path_parameter = Some("tile");
        operation.problems.push(ProblemKind::NotFound);
    }
}

impl DescribeArgument for web::Path<ClientKey> {
    fn describe(operation: &mut Operation) {
        operation.path_parameter = Some("key");
        operation.problems.push(ProblemKind::NotFound);
    }
}

/// Implements [`DescribeArgument`] for tuples, since handlers have zero to five arguments.
macro_rules! describe_tuples {
    ($($($argument:ident)*;)+) => {$(
        impl<$($argument: DescribeArgument),*> DescribeArgument for ($($argument,)*) {
            fn describe(_operation: &mut Operation) {
                $($argument::describe(_operation);)*
            }
        }
    )+};
}

describe_tuples! {
    ;
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
}
