//! The connection beneath a request, for answers that an HTTP server does not let one give: none
//! at all, one without `Date`, one that is no HTTP.

use std::any::Any;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use actix_web::HttpRequest;
use actix_web::dev::Extensions;

/// A second handle of the connection.
pub(super) struct Wire(TcpStream);

impl Wire {
    /// Keeps a handle beside a new connection: called by the HTTP server for each.
    pub fn keep(connection: &dyn Any, extensions: &mut Extensions) {
        let connection = connection.downcast_ref::<actix_web::rt::net::TcpStream>();
        if let Some(Ok(handle)) = connection.map(|it| it.as_fd().try_clone_to_owned()) {
            extensions.insert(Wire(handle.into()));
        }
    }

    /// The connection that a request came on.
    ///
    /// # Panics
    /// If there was no file descriptor left when it was opened.
    pub fn of(request: &HttpRequest) -> &Wire {
        request.conn_data().expect("the connection was kept")
    }

    /// Sends these bytes and closes the connection.
    pub async fn cut<T>(&self, bytes: &[u8]) -> T {
        // The socket does not block; a caller who is gone misses nothing.
        let _ = (&self.0).write_all(bytes);
        let _ = self.0.shutdown(Shutdown::Both);
        // The HTTP server sees the end of the connection and drops this request.
        std::future::pending().await
    }
}
