//! An HTTP proxy with Basic authentication, which forwards requests and opens tunnels.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// The credentials that the proxy accepts. The password needs percent-encoding in a URL.
pub const PROXY_CREDENTIALS: (&str, &str) = ("proxy-user", "proxy/pass@word");

/// A running proxy, which records the request line of every request.
pub struct Proxy {
    address: std::net::SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts a proxy on a free port.
    pub async fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
        };
        let requests = proxy.requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let requests = requests.clone();
                tokio::spawn(async move { serve(stream, &requests).await });
            }
        });
        proxy
    }

    /// Returns the address with the accepted credentials.
    pub fn url(&self) -> String {
        self.url_with("proxy-user:proxy%2Fpass%40word")
    }

    /// Returns the address with this user information.
    pub fn url_with(&self, user_info: &str) -> String {
        format!("http://{user_info}@{}", self.address)
    }

    /// Returns the request lines of all requests, in their order.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Serves the first request of a connection. Panics end only the task, which closes the connection.
async fn serve(stream: TcpStream, requests: &Mutex<Vec<String>>) {
    let mut client = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await.unwrap();
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    requests.lock().unwrap().push(head[0].clone());
    let (username, password) = PROXY_CREDENTIALS;
    let basic = BASE64_STANDARD.encode(format!("{username}:{password}"));
    let expected = format!("proxy-authorization: basic {basic}").to_ascii_lowercase();
    if !head
        .iter()
        .any(|line| line.to_ascii_lowercase() == expected)
    {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\n\
                       content-length: 0\r\nconnection: close\r\n\r\n";
        client.write_all(refusal.as_bytes()).await.unwrap();
        return;
    }
    let (method, rest) = head[0].split_once(' ').unwrap();
    let target = rest.split(' ').next().unwrap();
    let mut upstream = if method == "CONNECT" {
        let upstream = TcpStream::connect(target).await.unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        upstream
    } else {
        let after_scheme = target.strip_prefix("http://").expect("the absolute form");
        let (authority, path) = after_scheme.split_once('/').unwrap();
        let mut upstream = TcpStream::connect(authority).await.unwrap();
        let mut forwarded = format!("{method} /{path} HTTP/1.1\r\nconnection: close\r\n");
        for line in &head[1..] {
            let name = line.split(':').next().unwrap().to_ascii_lowercase();
            if !["proxy-authorization", "connection"].contains(&&*name) {
                forwarded += &format!("{line}\r\n");
            }
        }
        forwarded += "\r\n";
        upstream.write_all(forwarded.as_bytes()).await.unwrap();
        upstream
    };
    let _ = copy_bidirectional(&mut client, &mut upstream).await;
}
