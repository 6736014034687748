"""Tests the service on Citus: the contract, concurrent cleanups, key rotation, and workers that die."""

import json
import random
import sys
import threading
import time
import uuid

from cluster import Cluster, wait_until

TOKENS = "/bank/tokens/"


def request(user, **more):
    return {"userId": user, "country": "LT", "bank": "Swedbank", "access": {"accounts": True}, **more}


def new_user():
    return f"u-{uuid.uuid4()}"


class Contract:
    """Calls every operation, each on a replica that is chosen at random."""

    def __init__(self, cluster):
        self.cluster, self.calls = cluster, 0

    def expect(self, status, method, path, body=None, **options):
        found, answer = self.cluster.call(method, path, body, **options)
        assert found == status, (method, path, found, answer)
        self.calls += 1
        return answer

    def issue(self, status, user, headers={}, **more):
        return self.expect(status, "POST", TOKENS, request(user, **more), headers=headers)

    def run(self):
        user = new_user()
        first = self.issue(201, user)
        for base in self.cluster.bases:
            reused = self.expect(200, "POST", TOKENS, request(user), base=base)
            assert reused["id"] == first["id"] and reused["tokenString"] == first["tokenString"]
        renewed = self.issue(201, user, {"Cache-Control": "no-cache"})
        assert self.issue(200, user)["id"] == renewed["id"] != first["id"]
        self.issue(201, user, {"Cache-Control": "min-fresh=9000"}, lifetime=10_000)
        self.issue(201, user, bank="other", lifetime=0)
        self.expect(400, "POST", TOKENS, {"userId": ""})
        self.records(user, first, renewed)
        self.invalidations(user, renewed)
        self.audit(user, first)
        self.herd()
        self.commands()
        for path in ("/maintenance/cleanup", "/metrics", "/openapi.json", "/docs/", "/console/", "/console/audit",
                     f"/console/users?userId={user}", "/console/users?userId=nobody",
                     f"/console/tokens/{first['id']}"):
            self.expect(200, "GET", path)
        for dry_run in (True, False):
            assert self.expect(200, "POST", "/maintenance/cleanup", {"dryRun": dry_run})["complete"]
        return self.calls

    def records(self, user, first, renewed):
        assert self.expect(200, "GET", TOKENS + first["id"])["isValid"]
        query = f"{TOKENS}?limit=2&userId={user}"
        page = self.expect(200, "GET", query)
        rest = self.expect(200, "GET", f"{query}&cursor={page['nextCursor']}")
        assert len(page["items"] + rest["items"]) == 4 and rest["nextCursor"] is None
        assert len(self.expect(200, "GET", f"{TOKENS}?isValid=true&userId={user}")["items"]) == 3
        assert self.expect(200, "GET", f"{TOKENS}?limit=1")["nextCursor"]
        found = self.expect(200, "POST", f"{TOKENS}lookup", {"tokenString": renewed["tokenString"]})
        assert found["id"] == renewed["id"]
        self.expect(404, "POST", f"{TOKENS}lookup", {"tokenString": "none"})

    def invalidations(self, user, token):
        for reason in ("used", "requested"):
            record = self.expect(200, "POST", f"{TOKENS}{token['id']}/invalidate", {"reason": reason})
            assert not record["isValid"] and record["invalidationReason"] == "used"
        token = self.issue(200, user)
        by_string = {"reason": "compromised", "tokenString": token["tokenString"]}
        assert self.expect(200, "POST", f"{TOKENS}invalidate", by_string) == {"invalidated": 1}
        for bank in ("a", "b"):
            self.issue(201, user, bank=bank)
        by_user = {"reason": "requested", "userId": user}
        assert self.expect(200, "POST", f"{TOKENS}invalidate", by_user)["invalidated"] >= 3
        assert not self.expect(200, "GET", f"{TOKENS}?isValid=true&userId={user}")["items"]
        self.issue(201, user)

    def audit(self, user, first):
        events = "/audit/events"
        for query in (f"userId={user}", f"tokenId={first['id']}", f"fingerprint={first['fingerprint']}",
                      "kind=token.minted", "kind=token.reused", f"userId={user}&kind=token.minted&order=asc",
                      "kind=token.minted&kind=token.invalidated", "excludeKind=audit.read",
                      "excludeKind=audit.read&excludeKind=token.reused",
                      f"client={self.cluster.credentials.split(':')[0]}"):
            page = self.expect(200, "GET", f"{events}?limit=2&{query}")
            assert len(page["items"]) == 2 and page["nextCursor"], query
            self.expect(200, "GET", f"{events}?limit=2&{query}&cursor={page['nextCursor']}")
        event = page["items"][0]
        assert page["completeUntil"] < event["occurredAt"]
        # The command does not wait for the horizon.
        assert event["id"] in self.cluster.command(0, "audit", "export", "--to", "2100-01-01T00:00:00Z")
        for form in ("ndjson", "csv"):
            assert event["id"] in self.expect(200, "GET", f"{events}/export?format={form}")
        for path in ("/audit/log/checkpoint", "/audit/log/tile/0/000", f"{events}/{event['id']}/proof"):
            self.expect(404, "GET", path)
        self.expect(200, "GET", f"/console/events/{event['id']}")
        overview = self.expect(200, "GET", "/console/")
        assert "Replicas seen in the last minute: 2" in overview and "No client got a token" not in overview, overview
        assert "no event is sealed" in self.cluster.command(0, "audit", "verify", code=2)
        for command in (("erase", "--user", user), ("follow",)):
            assert "not available" in self.cluster.command(0, "audit", *command, code=1)
        ready = self.expect(200, "GET", "/health/ready")
        assert ready["distributed"] and ready["warnings"] == [], ready

    def herd(self):
        user, statuses = new_user(), []
        run_together(40, lambda _: statuses.append(self.cluster.call("POST", TOKENS, request(user))[0]))
        assert sorted(statuses) == [200] * 39 + [201], statuses

    def commands(self):
        key = self.cluster.command(1, "client", "create", "--name", "other", "--scope", "tokens:issue")["apiKey"]
        self.cluster.command(0, "client", "rotate", key, "--grace", "1s")
        self.cluster.command(1, "client", "disable", key)


def read_json(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def run_together(count, work):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check_cleanups(cluster):
    """Passes that run at once expire each token once."""
    count = 200
    run_together(8, lambda number: [
        cluster.call("POST", TOKENS, request(f"expiring-{number}-{step}", lifetime=1)) for step in range(count // 8)
    ])
    time.sleep(1)
    passes = [cluster.popen(number % 3, "cleanup", "--batch-size", "20") for number in range(6)]
    expired = sum(read_json(process)["expired"] for process in passes)
    expired += cluster.command(0, "cleanup")["expired"]
    events = int(cluster.nodes[0].query("SELECT count(*) FROM audit_events WHERE kind = 'token.expired'"))
    valid = int(cluster.nodes[0].query("SELECT count(*) FROM tokens WHERE is_valid AND ends_at < now()"))
    assert expired == events >= count and valid == 0, (expired, events, valid)
    assert int(cluster.nodes[0].query("SELECT count(*) FROM handout_minutes")) > 0
    return expired


def check_retention(cluster):
    """A pass on the coordinator deletes old records and drops an old month."""
    cluster.nodes[0].query("""
        UPDATE tokens SET ends_at = '2020-01-01' WHERE user_id LIKE 'expiring-%';
        UPDATE slots SET claimed_at = '2020-01-01', usable_until = '2020-01-01' WHERE user_id LIKE 'expiring-%';
        SELECT create_audit_partition('2020-01-01')""")
    summary = cluster.command(0, "cleanup")
    assert summary["purgedTokens"] == summary["purgedMints"] == summary["purgedCombinations"] >= 200, summary
    assert summary["partitionsDropped"] == 1 and summary["complete"], summary
    return summary["purgedTokens"]


def check_rotation(cluster):
    """Rotations that run at once lose no token."""
    for number in range(50):
        cluster.call("POST", TOKENS, request(f"rotated-{number}"))
    rotations = [cluster.popen(node, "keys", "rotate", keys=("k2", "k1")) for node in (0, 1, 2)]
    for process in rotations:
        read_json(process)
    left = cluster.nodes[0].query("SELECT count(*) FROM tokens WHERE is_valid AND key_id <> 'k2'")
    assert left == "0", left
    rotated = int(cluster.nodes[0].query("SELECT count(*) FROM tokens WHERE is_valid"))
    assert rotated >= 50, rotated
    cluster.command(0, "keys", "rotate", keys=("k1", "k2"))
    return rotated


def check_kills(cluster, kills):
    """After an acknowledged invalidation, no replica hands out the token, also if a worker dies meanwhile."""
    acknowledged, violations, stopping = [], [], threading.Event()

    def hand_out(user, invalid):
        status, token = cluster.call("POST", TOKENS, request(user))
        if status in (200, 201) and token["id"] in invalid:
            violations.append((user, token["id"]))
        return status, token

    def invalidate(_):
        while not stopping.is_set():
            user, tokens = new_user(), []
            for renew in ({}, {"Cache-Control": "no-cache"}):
                status, token = cluster.call("POST", TOKENS, request(user), headers=renew)
                if status == 201:
                    tokens.append(token)
            if len(tokens) < 2:
                continue
            last = tokens[-1]
            path, body, invalid = random.choice((
                (f"{last['id']}/invalidate", {}, tokens[1:]),
                ("invalidate", {"tokenString": last["tokenString"]}, tokens[1:]),
                ("invalidate", {"userId": user}, tokens),
            ))
            status, _ = cluster.call("POST", TOKENS + path, {"reason": "requested", **body})
            if status == 200:
                invalid = {token["id"] for token in invalid}
                acknowledged.append((user, invalid))
                for _ in range(3):
                    hand_out(user, invalid)

    threads = [threading.Thread(target=invalidate, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        for kill in range(kills):
            before = len(acknowledged)
            wait_until(lambda: len(acknowledged) > before + 20, 120)
            time.sleep(random.random())
            worker = cluster.nodes[1 + kill % 2]
            worker.stop()
            worker.start()
            for user, invalid in acknowledged[before:]:
                hand_out(user, invalid)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert not violations, violations
    return len(acknowledged)


def main(bin, program):
    cluster = Cluster(bin, program)
    try:
        print(f"{Contract(cluster).run()} calls of the contract pass")
        print(f"6 cleanups at once expired each of {check_cleanups(cluster)} tokens once")
        print(f"a cleanup deleted {check_retention(cluster)} old tokens with their records, and dropped a month")
        print(f"3 rotations at once re-encrypted all {check_rotation(cluster)} tokens")
        kills = 10
        print(f"{kills} deaths of workers: none of {check_kills(cluster, kills)} invalidated tokens was handed out")
    except BaseException:
        for replica in (0, 1):
            print(open(f"{cluster.folder}/replica{replica}.log").read()[-2000:], file=sys.stderr)
        raise
    finally:
        cluster.stop()


main(*sys.argv[1:])
