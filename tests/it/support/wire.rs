//! Sends requests that an HTTP client cannot send.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Sends the bytes and returns the status and the text of the response. The request must contain
/// `connection: close`, because the response is read until the connection ends.
pub async fn send_raw(base: &str, request: &[u8]) -> (u16, String) {
    let address = base.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    let response = String::from_utf8(response).unwrap();
    let status = response.split(' ').nth(1).unwrap().parse().unwrap();
    (status, response)
}

/// Builds a token request of the admin for this user.
pub fn token_request(user_id: &str) -> Vec<u8> {
    let body = format!(r#"{{"userId": "{user_id}"}}"#);
    let head = "POST /bank/tokens/ HTTP/1.1\r\nhost: localhost\r\n\
                authorization: Basic YWRtaW46YWRtaW4tc2VjcmV0\r\ncontent-type: application/json";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A connection that carries several requests, one after the other.
pub struct KeepAlive(pub BufReader<TcpStream>);

impl KeepAlive {
    /// Opens a connection.
    pub async fn open(address: SocketAddr) -> io::Result<KeepAlive> {
        Ok(KeepAlive(BufReader::new(
            TcpStream::connect(address).await?,
        )))
    }

    /// Sends a request and returns the status and the head of its response, in lower case. Fails if the
    /// connection ends first. The response must have a `Content-Length`.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<(u16, String)> {
        self.0.get_mut().write_all(request).await?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        head.make_ascii_lowercase();
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length = length.lines().next().unwrap().parse().unwrap();
        self.0.read_exact(&mut vec![0; length]).await?;
        Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), head))
    }
}
