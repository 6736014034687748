"""A Citus cluster of a coordinator and two workers, and processes of the service, on this machine."""

import base64
import json
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

SETTINGS = """
shared_preload_libraries = 'citus'
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
max_prepared_transactions = 200
citus.enable_unsafe_triggers = on
citus.recover_2pc_interval = 5s
"""
KEYS = {name: f"{name}:{base64.b64encode(name.encode() * 16).decode()}" for name in ("k1", "k2")}
SCOPES = "tokens:issue tokens:renew tokens:read tokens:invalidate audit:read maintenance".split()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return result


class Node:
    """A Postgres server. Postgres refuses to run as root, so another user runs it then."""

    def __init__(self, bin, folder, name):
        self.bin, self.data, self.port = bin, f"{folder}/{name}", free_port()
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"
        self.user = None
        if os.getuid() == 0:
            names = {user.pw_name for user in pwd.getpwall()}
            self.user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(folder, self.user)
        self.run("initdb", "--auth=trust", "--no-instructions", "-E", "UTF8", "--locale=C", "-U", "postgres")
        with open(f"{self.data}/postgresql.conf", "a") as file:
            file.write(f"{SETTINGS}port = {self.port}\n")
        self.start()
        self.query("CREATE EXTENSION citus")

    def run(self, program, *arguments):
        # libpq of the server looks for certificates in HOME.
        env = {"PATH": os.environ["PATH"], "HOME": self.data, "LC_ALL": "C"}
        command = [f"{self.bin}/{program}", "-D", self.data, *arguments]
        subprocess.run(command, check=True, cwd="/", user=self.user, env=env, stdout=subprocess.DEVNULL)

    def start(self):
        self.run("pg_ctl", "start", "-s", "-w", "-l", f"{self.data}.log")

    def stop(self):
        """Ends the server as a crash does."""
        self.run("pg_ctl", "stop", "-s", "-m", "immediate")

    def query(self, sql, *options):
        command = [f"{self.bin}/psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *options, self.url]
        done = subprocess.run(command, input=sql, text=True, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return done.stdout.strip()


class Cluster:
    """A migrated and distributed database, a sandbox, and one replica on the coordinator and one on a worker."""

    def __init__(self, bin, program, shards=4):
        self.program, self.folder, self.processes, self.nodes = program, tempfile.mkdtemp(prefix="token-vendor-citus."), [], []
        os.chmod(self.folder, 0o755)
        try:
            self.start(bin, shards)
        except BaseException:
            self.stop()
            raise

    def start(self, bin, shards):
        for name in ("coordinator", "worker1", "worker2"):
            self.nodes.append(Node(bin, self.folder, name))
        coordinator, *workers = self.nodes
        coordinator.query(f"SELECT citus_set_coordinator_host('127.0.0.1', {coordinator.port})")
        for worker in workers:
            coordinator.query(f"SELECT citus_add_node('127.0.0.1', {worker.port})")
        self.command(0, "migrate")
        coordinator.query(open("deploy/citus/distribute.sql").read(), "-v", f"shards={shards}")
        created = self.command(0, "client", "create", "--name", "check", *(x for scope in SCOPES for x in ("--scope", scope)))
        self.credentials = f"{created['apiKey']}:{created['apiSecret']}"
        provider = free_port()
        self.provider = f"http://127.0.0.1:{provider}"
        self.spawn("sandbox", ["sandbox", "--listen", f"127.0.0.1:{provider}", "--hourly-limit", "0"], {})
        self.bases = []
        for node in (0, 1):
            port = free_port()
            self.spawn(f"replica{node}", ["serve", "--listen", f"127.0.0.1:{port}"], self.environment(node))
            self.bases.append(f"http://127.0.0.1:{port}")
        for base in self.bases:
            wait_until(lambda: self.call("GET", "/health/ready", base=base)[0] == 200)

    def environment(self, node, keys=("k1",)):
        return {
            "DATABASE_URL": self.nodes[node].url,
            "UPSTREAM_BASE_URL": getattr(self, "provider", "http://127.0.0.1:1"),
            "UPSTREAM_API_KEY": "sandbox-key",
            "UPSTREAM_API_SECRET": "sandbox-secret",
            "TOKEN_KEYS": ",".join(KEYS[key] for key in keys),
            "FINGERPRINT_KEY": base64.b64encode(b"f" * 32).decode(),
            "CLEANUP_INTERVAL": "off",
        }

    def spawn(self, name, arguments, environment):
        log = open(f"{self.folder}/{name}.log", "w")
        command = [self.program, *arguments]
        self.processes.append(subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log))

    def popen(self, node, *arguments, keys=("k1",)):
        environment = {**os.environ, **self.environment(node, keys)}
        return subprocess.Popen([self.program, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def command(self, node, *arguments, keys=("k1",), code=0):
        """Runs a command of the program, and returns its JSON. With another exit code, returns its error line."""
        process = self.popen(node, *arguments, keys=keys)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, (arguments, process.returncode, err)
        if code:
            return err.splitlines()[-1]
        try:
            return json.loads(out)
        except ValueError:
            return out

    def call(self, method, path, body=None, base=None, headers={}):
        """Sends a request to a replica, and returns the status and the body. The status is 0 if there is no answer."""
        request = urllib.request.Request((base or random.choice(self.bases)) + path, method=method, headers=dict(headers))
        if hasattr(self, "credentials"):
            credentials = base64.b64encode(self.credentials.encode()).decode()
            request.add_header("Authorization", f"Basic {credentials}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        except OSError:
            return 0, ""
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()
        for node in self.nodes:
            try:
                node.stop()
            except subprocess.CalledProcessError:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)
