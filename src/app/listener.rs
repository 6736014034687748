//! The socket that the service listens on.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::TcpSocket;
use tokio::time::sleep;

use crate::api::ServerHandle;

/// Maximum number of connections that wait to be accepted. The system may lower it.
const BACKLOG: u32 = 8_192;

/// Maximum number of times that [`close`] waits for all connections to be accepted, 2 ms each.
const MAX_ATTEMPTS: u32 = 200;

/// Binds like the standard library, with a larger backlog. With the usual 128, a burst of callers loses
/// connection attempts, which are repeated only after a second.
pub fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Lets the system refuse new connections, although the server also holds the socket.
///
/// The system resets connections that the server has not accepted yet. Therefore the socket is shut down
/// in a moment in which there are none. The server is paused meanwhile, because it logs an error when it
/// accepts from a socket that was shut down.
pub async fn close(listener: TcpListener, server: &ServerHandle) {
    for _ in 0..MAX_ATTEMPTS {
        server.pause().await;
        sleep(Duration::from_millis(1)).await;
        if !has_waiting_connection(&listener) {
            break;
        }
        server.resume().await;
        sleep(Duration::from_millis(1)).await;
    }
    // The standard library shuts down only streams. The call is the same.
    let _ = TcpStream::from(OwnedFd::from(listener)).shutdown(Shutdown::Both);
}

fn has_waiting_connection(listener: &TcpListener) -> bool {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
