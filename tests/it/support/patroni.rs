//! Three database nodes with the files of deploy/patroni: etcd, Patroni and Postgres on each, behind haproxy.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use rcgen::{BasicConstraints, CertificateParams, Issuer, KeyPair};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::cluster::own_folder;
use super::standby::{children, kill_processes};
use super::{eventually, http_client};

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/patroni");

/// The password of both roles of the application.
const PASSWORD: &str = "application";

/// Three nodes and haproxy. They end when this is dropped.
pub struct Nodes {
    folder: PathBuf,
    user: User,
    nodes: Vec<Node>,
    haproxy: Option<Child>,
    /// Trusts the certificates of the nodes.
    http: reqwest::Client,
}

/// A machine of the cluster. It has an address of its own on the loopback interface.
struct Node {
    name: String,
    address: String,
    folder: PathBuf,
    etcd: Option<Child>,
    patroni: Option<Child>,
}

impl Nodes {
    /// Starts the nodes, haproxy, and an empty database of the role `token_vendor`. Returns the reason if it cannot.
    pub async fn start() -> Result<Nodes, &'static str> {
        for (program, version) in [
            ("etcd", "--version"),
            ("patroni", "--version"),
            ("haproxy", "-v"),
        ] {
            if Command::new(program).arg(version).output().await.is_err() {
                return Err("etcd, patroni or haproxy is not installed");
            }
        }
        // `peer` in pg_hba admits the superuser by the name of the system's user.
        let user = User::from_name("postgres").ok().flatten();
        let Some(user) = user.filter(|_| geteuid().is_root()) else {
            return Err("needs root and the user postgres");
        };
        let folder = own_folder();
        fs::create_dir(&folder).unwrap();
        let mut nodes = Nodes {
            nodes: (1..=3).map(|number| Node::new(&folder, number)).collect(),
            folder,
            user,
            haproxy: None,
            http: http_client(),
        };
        nodes.write_files().await;
        for number in 0..3 {
            nodes.spawn(number).await;
        }
        let configuration = nodes.folder.join("haproxy.cfg");
        let mut haproxy = Command::new("setpriv");
        haproxy.args(["--pdeathsig", "SIGKILL", "haproxy", "-db", "-f"]);
        haproxy.arg(configuration);
        haproxy.stdout(Stdio::null()).stderr(nodes.log("haproxy"));
        nodes.haproxy = Some(haproxy.kill_on_drop(true).spawn().unwrap());
        nodes.are_whole().await;
        let primary = nodes.find("leader").await;
        for statement in [
            format!("CREATE ROLE token_vendor LOGIN PASSWORD '{PASSWORD}'"),
            format!("CREATE ROLE token_vendor_service LOGIN PASSWORD '{PASSWORD}'"),
            "CREATE DATABASE token_vendor OWNER token_vendor".into(),
        ] {
            nodes.psql(primary, &statement).await;
        }
        Ok(nodes)
    }

    /// Returns the URL of the database for a role, at the primary (port 5432) or at a standby (port 5433).
    pub fn url(&self, role: &str, port: u16) -> String {
        let ca = self.folder.join("ca.pem");
        format!(
            "postgres://{role}:{PASSWORD}@127.0.0.1:{port}/token_vendor?sslmode=verify-ca&sslrootcert={}",
            ca.display()
        )
    }

    /// Returns the node with this role in Patroni: `leader` or `sync_standby`.
    pub async fn find(&self, role: &str) -> usize {
        let members = self.members(&self.nodes[0]).await;
        let member = members.iter().find(|member| member["role"] == role);
        let name = &member.expect("all nodes run")["name"];
        let of_name = |node: &Node| *name == *node.name;
        self.nodes.iter().position(of_name).expect("a node")
    }

    /// Waits until all nodes agree that one is the primary, one the synchronous standby, and one another standby.
    pub async fn are_whole(&self) {
        let roles = [
            ("leader", "running"),
            ("sync_standby", "streaming"),
            ("replica", "streaming"),
        ];
        within_a_minute("a primary and two standbys", async || {
            let mut views = Vec::new();
            for node in &self.nodes {
                let members = self.members(node).await;
                let find = |(role, state): (&str, &str)| {
                    let of_role = |member: &&Value| member["role"] == role;
                    let member = members.iter().find(of_role)?;
                    (member["state"] == state).then(|| member["name"].clone())
                };
                views.push(roles.map(find));
            }
            // A node that stood still answers with what it knew before.
            views[0].iter().all(Option::is_some) && views.iter().all(|view| *view == views[0])
        })
        .await;
    }

    /// Returns the members of the cluster as a node sees them.
    async fn members(&self, node: &Node) -> Vec<Value> {
        match self.ask(node, "cluster").await["members"].take() {
            Value::Array(members) => members,
            _ => Vec::new(),
        }
    }

    /// Returns the answer of a node's Patroni to a GET, or null.
    async fn ask(&self, node: &Node, path: &str) -> Value {
        // `eventually` asks every 10 ms.
        sleep(Duration::from_millis(100)).await;
        let url = format!("https://{}:8008/{path}", node.address);
        let answer = async { self.http.get(url).send().await?.bytes().await };
        let answer = answer.await.unwrap_or_default();
        serde_json::from_slice(&answer).unwrap_or_default()
    }

    /// Stops the processes that send the changes of a node to its standbys, and waits half a second.
    ///
    /// No commit reaches a standby meanwhile. So none of them may be acknowledged.
    pub async fn cut_off(&self, number: usize) {
        let postmaster = self.nodes[number].postmaster().expect("it runs");
        for child in children(Pid::from_raw(postmaster.cast_signed())) {
            let title = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&title).contains("walsender") {
                let _ = kill(child, Signal::SIGSTOP);
            }
        }
        sleep(Duration::from_millis(500)).await;
    }

    /// Kills all processes of a node, as the loss of its machine does.
    pub async fn kill(&mut self, number: usize) {
        self.kill_postgres(number);
        let node = &mut self.nodes[number];
        for mut child in [node.patroni.take(), node.etcd.take()]
            .into_iter()
            .flatten()
        {
            child.kill().await.unwrap();
        }
    }

    /// Kills Postgres on a node. Its Patroni continues.
    pub fn kill_postgres(&self, number: usize) {
        if let Some(postmaster) = self.nodes[number].postmaster() {
            kill_processes(postmaster);
        }
    }

    /// Stops the time of a node: all its processes stand still. Connections to it stay open and get no answer.
    pub fn freeze(&self, number: usize) -> Vec<Pid> {
        let node = &self.nodes[number];
        let patroni = node.patroni.as_ref().and_then(Child::id);
        let parents = [node.postmaster(), patroni].map(|pid| pid.expect("it runs"));
        let mut frozen = self.freeze_etcd(number);
        for parent in parents.map(|pid| Pid::from_raw(pid.cast_signed())) {
            // The parent stops before its children are listed.
            kill(parent, Signal::SIGSTOP).unwrap();
            frozen.push(parent);
            for child in children(parent) {
                let _ = kill(child, Signal::SIGSTOP);
                frozen.push(child);
            }
        }
        frozen
    }

    /// Stops the time of a node's etcd.
    pub fn freeze_etcd(&self, number: usize) -> Vec<Pid> {
        let etcd = self.nodes[number].etcd.as_ref().and_then(Child::id);
        let etcd = Pid::from_raw(etcd.expect("it runs").cast_signed());
        kill(etcd, Signal::SIGSTOP).unwrap();
        vec![etcd]
    }

    /// Waits until the primary goes on because it reaches both other nodes, although it cannot renew its lease.
    pub async fn goes_on_without_etcd(&self, number: usize) {
        let node = &self.nodes[number];
        eventually("the primary goes on without etcd", async || {
            self.ask(node, "patroni").await["failsafe_mode_is_active"] == true
        })
        .await;
    }

    /// Lets the primary and its synchronous standby change places.
    pub async fn switch_over(&self) {
        let (primary, standby) = (self.find("leader").await, self.find("sync_standby").await);
        let [from, to] = [primary, standby].map(|number| &*self.nodes[number].name);
        let mut patronictl = self.command("patronictl", &self.nodes[primary], Signal::SIGKILL);
        patronictl.args(["-c", "patroni.yml", "switchover", "--force"]);
        patronictl.args(["--primary", from, "--candidate", to]);
        let output = patronictl.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Starts the processes of a node.
    pub async fn spawn(&mut self, number: usize) {
        let node = &self.nodes[number];
        let settings = fs::read_to_string(node.folder.join("etcd.env")).unwrap();
        let settings = settings.lines().filter_map(|line| line.split_once('='));
        let settings = settings.filter(|(name, _)| name.starts_with("ETCD_"));
        let mut etcd = self.command("etcd", node, Signal::SIGKILL);
        etcd.envs(settings).stdout(Stdio::null());
        let etcd = etcd.stderr(Stdio::null()).spawn().unwrap();
        // A Patroni that gets SIGTERM stops its Postgres.
        let mut patroni = self.command("patroni", node, Signal::SIGTERM);
        patroni.arg("patroni.yml").stdout(self.log(&node.name));
        let patroni = patroni.stderr(self.log(&node.name)).spawn().unwrap();
        let node = &mut self.nodes[number];
        (node.etcd, node.patroni) = (Some(etcd), Some(patroni));
    }

    /// Returns a command that runs in the folder of a node as its user. It gets the signal when the test ends.
    fn command(&self, program: &str, node: &Node, signal: Signal) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", signal.as_str(), program])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &node.folder)
            .env("LC_ALL", "C.UTF-8")
            .current_dir(&node.folder)
            .uid(self.user.uid.as_raw())
            .gid(self.user.gid.as_raw())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn log(&self, name: &str) -> File {
        let file = self.folder.join(format!("{name}.log"));
        File::options()
            .append(true)
            .create(true)
            .open(file)
            .unwrap()
    }

    async fn psql(&self, number: usize, statement: &str) {
        let mut psql = self.command("psql", &self.nodes[number], Signal::SIGKILL);
        psql.args(["-qX", "-U", "postgres", "-c", statement, "-h"]);
        psql.arg(&self.nodes[number].folder);
        let output = psql.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Writes a CA, the files of haproxy, and the certificate and the files of each node.
    async fn write_files(&mut self) {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let ca_pem = ca.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(ca, key);
        fs::write(self.folder.join("ca.pem"), &ca_pem).unwrap();
        let trusted = reqwest::Certificate::from_pem(ca_pem.as_bytes()).unwrap();
        self.http = reqwest::Client::builder()
            .tls_certs_only([trusted])
            .no_proxy()
            .timeout(Duration::from_secs(2))
            .build()
            .unwrap();
        let folder = self.folder.to_str().unwrap();
        let haproxy = fill_in("haproxy.cfg", &[("/etc/patroni/tls", folder)]);
        fs::write(self.folder.join("haproxy.cfg"), haproxy).unwrap();

        let find = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/find-postgres");
        let programs = Command::new(find).output().await.unwrap().stdout;
        let programs = String::from_utf8(programs).unwrap();
        for node in &self.nodes {
            DirBuilder::new().mode(0o700).create(&node.folder).unwrap();
            // Nodes on one machine call each other from 127.0.0.1, and etcd compares this address.
            let names = [node.address.clone(), "127.0.0.1".into()];
            let key = KeyPair::generate().unwrap();
            let mut certificate = CertificateParams::new(names).unwrap();
            let name = &mut certificate.distinguished_name;
            name.push(rcgen::DnType::CommonName, &*node.name);
            let certificate = certificate.signed_by(&key, &issuer).unwrap();
            let write = |name: &str, content: &str| {
                fs::write(node.folder.join(name), content).unwrap();
            };
            write("ca.pem", &ca_pem);
            write("node.pem", &certificate.pem());
            write("node.key", &key.serialize_pem());
            let folder = node.folder.to_str().unwrap();
            let values = [
                ("${NODE_NAME}", &*node.name),
                ("${NODE_ADDRESS}", &node.address),
                ("${REPLICATION_PASSWORD}", "replication"),
                ("${REWIND_PASSWORD}", "rewind"),
                ("/etc/patroni/tls", folder),
                ("/usr/lib/postgresql/17/bin", programs.trim()),
                ("/var/lib/postgresql", folder),
                ("/var/run/postgresql", folder),
                ("/var/lib/etcd", folder),
                // A frozen node is not reset, which is the harder case.
                ("mode: required", "mode: off"),
            ];
            for name in ["patroni.yml", "etcd.env"] {
                write(name, &fill_in(name, &values));
            }
            for entry in fs::read_dir(&node.folder).unwrap().flatten() {
                fs::set_permissions(entry.path(), Permissions::from_mode(0o600)).unwrap();
                self.give(&entry.path());
            }
            self.give(&node.folder);
        }
    }

    fn give(&self, path: &Path) {
        let (user, group) = (self.user.uid.as_raw(), self.user.gid.as_raw());
        chown(path, Some(user), Some(group)).unwrap();
    }
}

impl Node {
    fn new(folder: &Path, number: usize) -> Node {
        let name = format!("db{number}");
        Node {
            folder: folder.join(&name),
            address: format!("127.0.0.1{number}"),
            name,
            etcd: None,
            patroni: None,
        }
    }

    /// Returns the process of Postgres, if one runs.
    fn postmaster(&self) -> Option<u32> {
        let file = self.folder.join("17/token-vendor/postmaster.pid");
        let pid = fs::read_to_string(file).ok()?;
        let pid: u32 = pid.lines().next()?.parse().ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            // Patroni first: it starts Postgres again.
            drop([node.patroni.take(), node.etcd.take()]);
            self.kill_postgres(number);
        }
        if std::thread::panicking() {
            for name in ["db1", "db2", "db3", "haproxy"] {
                let log = fs::read_to_string(self.folder.join(format!("{name}.log")));
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(20)..];
                eprintln!("--- {name} ---\n{}", last.join("\n"));
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Polls the condition every 10 ms until it is true. Panics with its description after 60 s, for a busy machine.
pub async fn within_a_minute(description: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let until_true = async {
        while !is_true().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = timeout(Duration::from_secs(60), until_true).await;
    assert!(waited.is_ok(), "not true after 60 s: {description}");
}

/// Returns a file of deploy/patroni with the addresses of this machine, and with these values.
fn fill_in(name: &str, values: &[(&str, &str)]) -> String {
    let content = fs::read_to_string(Path::new(FILES).join(name)).unwrap();
    let content = content.replace("10.0.0.", "127.0.0.");
    let fill = |content: String, (name, value): &(&str, &str)| content.replace(name, value);
    values.iter().fold(content, fill)
}
