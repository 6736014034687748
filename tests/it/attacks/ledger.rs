//! A stand-in for the provider. Its ledger has every call and every minted token, and lives outside the database.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// A call in the ledger.
#[derive(Clone, Debug)]
pub struct Call {
    /// The time when the request had arrived.
    pub started: Instant,
    /// The time just before the first byte of the answer, or when the caller hung up. `None` while the call runs.
    pub ended: Option<Instant>,
    /// The bank of the request, which names its combination: each combination of an attack has a bank of its own.
    pub bank: String,
    /// The minted token string, also if its answer is lost or hostile.
    pub token: Option<String>,
    /// The end of the token's life.
    pub expires: Instant,
    /// True if the service may accept the answer.
    pub is_good: bool,
}

/// A valid request, with the token that a normal answer to it contains.
pub struct Request {
    pub lifetime: Duration,
    pub token: String,
    /// The body of the normal 201.
    pub document: Value,
}

/// The answer to a request.
pub struct Answer {
    /// The token string to enter in the ledger. `None` if the provider mints nothing.
    pub token: Option<String>,
    /// The life of the token.
    pub life: Duration,
    /// True if the service may accept the answer.
    pub is_good: bool,
    pub steps: Vec<Step>,
}

/// A step of an answer.
pub enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    /// Keeps the connection open until the caller closes it.
    Hang,
    Close,
}

/// A function that chooses the answer to a request.
pub type Behaviour = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A running stand-in and its ledger.
#[derive(Clone)]
pub struct Ledger {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    calls: Vec<Call>,
    latency_ms: Range<u64>,
    behaviour: Behaviour,
}

impl Request {
    fn parse(body: &[u8]) -> Request {
        let body: Value = serde_json::from_slice(body).expect("the service sends JSON");
        let lifetime = body["lifetime"]
            .as_u64()
            .expect("the service sends a lifetime");
        let token: String = (0..40).map(|_| fastrand::alphanumeric()).collect();
        let expiration = Utc::now() + TimeDelta::seconds(lifetime.cast_signed());
        let document = json!({
            "tokenString": token,
            "expiration": expiration.to_rfc3339_opts(SecondsFormat::Micros, true),
            "isValid": true,
            "country": body["country"],
            "bank": body["bank"],
            "access": body["access"],
        });
        Request {
            lifetime: Duration::from_secs(lifetime),
            token,
            document,
        }
    }

    fn bank(&self) -> String {
        self.document["bank"].as_str().unwrap_or_default().into()
    }
}

impl Answer {
    /// Returns the provider's normal 201.
    pub fn normal(request: &Request) -> Answer {
        Answer {
            token: Some(request.token.clone()),
            life: request.lifetime,
            is_good: true,
            steps: vec![Step::Send(response(
                "201 Created",
                request.document.to_string().as_bytes(),
            ))],
        }
    }
}

/// Builds a JSON response with `Date` and `Content-Length`.
pub fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ndate: {date}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

impl Ledger {
    /// Starts the stand-in on a free port. It answers normally after 5 to 40 ms.
    pub async fn start() -> Ledger {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ledger = Ledger {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                calls: Vec::new(),
                latency_ms: 5..40,
                behaviour: Arc::new(Answer::normal),
            })),
        };
        let served = ledger.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ledger = served.clone();
                tokio::spawn(async move { ledger.serve(stream).await });
            }
        });
        ledger
    }

    /// Returns the value of `UPSTREAM_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the delay of the answers to later requests.
    pub fn set_latency(&self, milliseconds: Range<u64>) {
        self.lock().latency_ms = milliseconds;
    }

    /// Changes the answers to later requests.
    pub fn set_behaviour(&self, behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        self.lock().behaviour = Arc::new(behaviour);
    }

    /// Returns all calls so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Returns the number of calls that are under way.
    pub fn running(&self) -> usize {
        let state = self.lock();
        state
            .calls
            .iter()
            .filter(|call| call.ended.is_none())
            .count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves one connection. A call ends at the latest when its connection does.
    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(body) = read_request(&mut stream).await? {
            let (index, delay, answer) = self.enter(&body);
            let answered = self.answer(&mut stream, index, delay, answer).await;
            self.end(index);
            if !answered? {
                break;
            }
        }
        Ok(())
    }

    /// Enters a call in the ledger. Returns its index, its delay and its answer.
    fn enter(&self, body: &[u8]) -> (usize, Duration, Answer) {
        let started = Instant::now();
        let request = Request::parse(body);
        let behaviour = self.lock().behaviour.clone();
        let answer = behaviour(&request);
        let mut state = self.lock();
        let delay = Duration::from_millis(fastrand::u64(state.latency_ms.clone()));
        state.calls.push(Call {
            started,
            ended: None,
            bank: request.bank(),
            token: answer.token.clone(),
            expires: Instant::now() + answer.life,
            is_good: answer.is_good,
        });
        (state.calls.len() - 1, delay, answer)
    }

    fn end(&self, index: usize) {
        self.lock().calls[index]
            .ended
            .get_or_insert_with(Instant::now);
    }

    /// Sends the answer. Returns false if the connection must close.
    async fn answer(
        &self,
        stream: &mut BufReader<TcpStream>,
        index: usize,
        delay: Duration,
        answer: Answer,
    ) -> io::Result<bool> {
        tokio::select! {
            () = sleep(delay) => {}
            // The service sends one request after the other, so this is the end of the connection.
            _ = stream.fill_buf() => return Ok(false),
        }
        for step in answer.steps {
            match step {
                Step::Send(bytes) => {
                    self.end(index);
                    stream.get_mut().write_all(&bytes).await?;
                }
                Step::Wait(delay) => sleep(delay).await,
                Step::Hang => {
                    stream.fill_buf().await?;
                    return Ok(false);
                }
                Step::Close => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Reads a request and returns its body, or `None` at the end of the connection.
async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        line.make_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line.trim_end().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}
