//! A path of the route table: what actix serves there, and what the OpenAPI document says of it.

use actix_web::{FromRequest, Handler, HttpRequest, Resource, Responder, guard, web};
use uuid::Uuid;

use crate::api::extract::authorization::{Authorized, RequiredScope};
use crate::api::extract::body::Body;
use crate::api::middleware::request_context::Route;
use crate::api::problem::{Problem, ProblemKind};
use crate::model::{FailureKind, Scope};

/// A segment that is a UUID; any other makes a path that is not there, before anyone is asked who
/// they are.
const UUID_SEGMENT: &str =
    "{id:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}}";

/// A path with its handlers.
pub struct Path {
    /// As the contract writes it.
    pub name: &'static str,
    get: Option<Call>,
    post: Option<Call>,
}

struct Call {
    route: Box<dyn Fn() -> actix_web::Route>,
    operation: Option<Operation>,
}

/// What the document knows of an operation by its handler alone.
#[derive(Debug, Default)]
pub struct Operation {
    /// The handler's name.
    pub id: &'static str,
    /// The scope that its caller needs.
    pub scope: Option<Scope>,
    /// Whether its path has an id.
    pub has_id: bool,
    /// The problems that its arguments make.
    pub problems: Vec<ProblemKind>,
}

impl Path {
    /// A path without any method yet.
    pub fn new(name: &'static str) -> Self {
        Path {
            name,
            get: None,
            post: None,
        }
    }

    /// Its `GET`, which is also its `HEAD`.
    pub fn get<F, Args>(self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + Described + 'static,
        F::Output: Responder + 'static,
    {
        let operation = Some(Operation::of::<F, Args>());
        let mut path = self.page(handler);
        path.get = path.get.map(|call| Call { operation, ..call });
        path
    }

    /// A `GET` for people's eyes, which the document leaves out.
    pub fn page<F, Args>(mut self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        let reads = || guard::Any(guard::Get()).or(guard::Head());
        self.get = Some(Call {
            route: Box::new(move || web::route().guard(reads()).to(handler.clone())),
            operation: None,
        });
        self
    }

    /// A `POST` of a form, which the document leaves out.
    pub fn form<F, Args>(mut self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.post = Some(Call {
            route: Box::new(move || web::post().to(handler.clone())),
            operation: None,
        });
        self
    }

    /// Its `POST`.
    pub fn post<F, Args>(self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + Described + 'static,
        F::Output: Responder + 'static,
    {
        let operation = Some(Operation::of::<F, Args>());
        let mut path = self.form(handler);
        path.post = path.post.map(|call| Call { operation, ..call });
        path
    }

    /// Has actix serve it, with and without its final slash.
    ///
    /// Two literal paths rather than one that is normalised or matched by an expression: comparing
    /// them costs a hot request nothing.
    pub fn register(&self, config: &mut web::ServiceConfig) {
        let allow = match (&self.get, &self.post) {
            (Some(_), Some(_)) => "GET, HEAD, POST",
            (Some(_), None) => "GET, HEAD",
            _ => "POST",
        };
        let pattern = self.name.trim_end_matches('/');
        let with_slash = pattern.replace("{id}", UUID_SEGMENT) + "/";
        for pattern in [with_slash.trim_end_matches('/'), &with_slash] {
            let not_allowed =
                move || async move { Err::<String, _>(Problem::method_not_allowed(allow)) };
            let resource = web::resource(pattern)
                .app_data(Route(self.name))
                .default_service(web::to(not_allowed));
            let calls = self.get.iter().chain(&self.post);
            config.service(calls.fold(resource, |resource: Resource, call| {
                resource.route((call.route)())
            }));
        }
    }

    /// Its methods, in lower case, with what the document knows of them.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, &Operation)> {
        let calls = [("get", &self.get), ("post", &self.post)];
        calls
            .into_iter()
            .filter_map(|(method, call)| Some((method, call.as_ref()?.operation.as_ref()?)))
    }
}

impl Operation {
    fn of<F, Args: Described>() -> Self {
        let id = std::any::type_name::<F>().rsplit("::").next();
        let mut operation = Operation {
            id: id.expect("a name"),
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

/// An argument of a handler that says something of its operation.
pub trait Described {
    /// Adds it.
    fn describe(_operation: &mut Operation) {}
}

impl Described for HttpRequest {}
impl<T: 'static> Described for web::Data<T> {}

impl<S: RequiredScope> Described for Authorized<S> {
    fn describe(operation: &mut Operation) {
        operation.scope = Some(S::SCOPE);
        operation.problems.extend([
            ProblemKind::Unauthenticated,
            ProblemKind::Forbidden,
            ProblemKind::RateLimited,
            ProblemKind::Failed(FailureKind::DatabaseUnavailable),
        ]);
    }
}

impl Described for Body {
    fn describe(operation: &mut Operation) {
        operation.problems.extend([
            ProblemKind::Malformed,
            ProblemKind::RequestTimeout,
            ProblemKind::BodyTooLarge,
            ProblemKind::UnsupportedMediaType,
        ]);
    }
}

impl Described for web::Path<Uuid> {
    fn describe(operation: &mut Operation) {
        operation.has_id = true;
        operation.problems.push(ProblemKind::NotFound);
    }
}

macro_rules! described_arguments {
    ($($($argument:ident)*;)+) => {$(
        impl<$($argument: Described),*> Described for ($($argument,)*) {
            fn describe(_operation: &mut Operation) {
                $($argument::describe(_operation);)*
            }
        }
    )+};
}

described_arguments! {
    ;
    A;
    A B;
    A B C;
    A B C D;
}
