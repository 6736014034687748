//! A TCP address of a database that has only a Unix socket. Its open connections can go silent.

use std::future::pending;
use std::io;
use std::mem::replace;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use reqwest::Url;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// The bytes of a connection that disappear, as behind a firewall that drops packets. The connection stays open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    Nothing,
    Answers,
    Everything,
}

/// A running proxy.
pub struct DatabaseProxy {
    pub address: SocketAddr,
    user: String,
    database: String,
    /// The silence of all connections since the last change.
    open: Arc<Mutex<watch::Sender<Silence>>>,
    /// All bytes that clients sent.
    sent: Arc<Mutex<Vec<u8>>>,
}

impl DatabaseProxy {
    /// Starts a proxy on a free port of 127.0.0.1.
    pub async fn start(url: &str) -> DatabaseProxy {
        DatabaseProxy::start_at("127.0.0.1:0", url).await
    }

    /// Starts a proxy at this address. `url` names the folder of the socket.
    pub async fn start_at(address: &str, url: &str) -> DatabaseProxy {
        let url = Url::parse(url).unwrap();
        let find = |name: &str| {
            let pair = url.query_pairs().find(|(found, _)| found == name);
            pair.unwrap().1.into_owned()
        };
        let socket = format!("{}/.s.PGSQL.{}", find("host"), find("port"));
        let listener = TcpListener::bind(address).await.unwrap();
        let proxy = DatabaseProxy {
            address: listener.local_addr().unwrap(),
            user: find("user"),
            database: url.path().trim_start_matches('/').into(),
            open: Arc::new(Mutex::new(watch::Sender::new(Silence::Nothing))),
            sent: Arc::default(),
        };
        let (open, sent) = (proxy.open.clone(), proxy.sent.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let silence = open.lock().unwrap().subscribe();
                let (socket, sent) = (socket.clone(), sent.clone());
                tokio::spawn(async move { connect(client, &socket, silence, &sent).await });
            }
        });
        proxy
    }

    /// Returns the URL of the database behind the proxy.
    pub fn url(&self) -> String {
        let DatabaseProxy {
            address,
            user,
            database,
            ..
        } = self;
        format!("postgres://{user}@{address}/{database}")
    }

    /// Returns everything that the clients have sent to the database, as text.
    pub fn sent(&self) -> String {
        String::from_utf8_lossy(&self.sent.lock().unwrap()).into_owned()
    }

    /// Lets the open connections go silent. New connections work.
    pub fn silence(&self, silence: Silence) {
        let next = watch::Sender::new(Silence::Nothing);
        let open = replace(&mut *self.open.lock().unwrap(), next);
        open.send_replace(silence);
    }
}

/// Passes bytes between the client and the socket.
async fn connect(
    client: TcpStream,
    socket: &str,
    silence: watch::Receiver<Silence>,
    sent: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    let server = UnixStream::connect(socket).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let answers = silence.clone();
    tokio::try_join!(
        pass(
            from_client,
            to_server,
            silence,
            Some(sent),
            |silence| silence == Silence::Everything
        ),
        pass(from_server, to_client, answers, None, |silence| silence
            != Silence::Nothing),
    )?;
    Ok(())
}

/// Passes bytes in one direction, until it is silent. Adds them to `record`.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut silence: watch::Receiver<Silence>,
    record: Option<&Mutex<Vec<u8>>>,
    is_silent: fn(Silence) -> bool,
) -> io::Result<()> {
    let copy = async {
        let mut buffer = [0; 8192];
        loop {
            match from.read(&mut buffer).await? {
                0 => return to.shutdown().await,
                read => {
                    if let Some(record) = record {
                        record.lock().unwrap().extend(&buffer[..read]);
                    }
                    to.write_all(&buffer[..read]).await?;
                }
            }
        }
    };
    let is_silent = async { silence.wait_for(|now| is_silent(*now)).await.map(drop) };
    tokio::select! {
        biased;
        Ok(()) = is_silent => pending().await,
        copied = copy => copied,
    }
}
