//! The service as a database role that owns nothing, beside an owner that migrates.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use token_vendor::db::overview::roll_up_minutes;
use token_vendor::db::service_role::{FUNCTIONS, TABLES};
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::cleanup::seed;
use crate::metrics::scrape;
use crate::support::cluster::create_empty_database;
use crate::support::{Ended, World, eventually, run, send};

/// A database of an owner that is no superuser, and a role of the service.
struct TwoRoles {
    /// The environment, as the owner.
    world: World,
    owner: String,
    service: String,
    /// The URL of the service.
    url: String,
}

impl TwoRoles {
    /// Creates both roles, and sets up the one of the service.
    async fn new() -> TwoRoles {
        TwoRoles::with_retention(&[]).await
    }

    /// Sets up the role with these arguments of `migrate`.
    async fn with_retention(arguments: &[&str]) -> TwoRoles {
        let superuser = create_empty_database().await;
        let database = database_name(&superuser);
        let (owner, service) = (format!("{database}_owner"), format!("{database}_service"));
        let create = format!(
            "CREATE ROLE {owner} LOGIN; CREATE ROLE {service} LOGIN; ALTER DATABASE {database} OWNER TO {owner}"
        );
        execute(&superuser, &create).await;
        let owner_url = url_as(&superuser, &owner);
        let variables = [("DATABASE_URL".to_owned(), owner_url.clone())];
        let arguments = [&["migrate", "--grant", &service], arguments].concat();
        let granted = run(&arguments, &variables).await;
        assert_eq!(granted.code, 0, "{granted:?}");
        let mut world = World::on(owner_url).await;
        world.is_checked = false;
        let url = url_as(&superuser, &service);
        TwoRoles {
            world,
            owner,
            service,
            url,
        }
    }

    /// Runs the program as the service.
    async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(arguments, &[]).await
    }

    /// Runs the program as the service with additional settings.
    async fn run_with(&self, arguments: &[&str], more: &[(&str, &str)]) -> Ended {
        let more = [&[("DATABASE_URL", &*self.url)], more].concat();
        run(arguments, &self.world.variables(&more)).await
    }

    /// Runs `migrate` as the owner.
    async fn migrate(&self, arguments: &[&str]) -> Ended {
        let arguments = [&["migrate"], arguments].concat();
        run(&arguments, &self.world.variables(&[])).await
    }

    /// Runs a statement as the service. Returns the SQLSTATE and the message of its error.
    async fn try_as_service(&self, statement: &str) -> Result<(), (String, String)> {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        match connection
            .execute(AssertSqlSafe(statement.to_owned()))
            .await
        {
            Ok(_) => Ok(()),
            Err(sqlx::Error::Database(error)) => {
                Err((error.code().unwrap().into_owned(), error.message().into()))
            }
            Err(error) => panic!("{statement}: {error}"),
        }
    }

    /// Asserts that the service lacks the privilege for a statement.
    async fn refuses(&self, statement: &str) {
        let result = self.try_as_service(statement).await;
        let code = result.as_ref().map_err(|(code, _)| &**code);
        assert_eq!(code, Err("42501"), "{statement}: {result:?}");
    }

    /// Waits until the service has sealed an event.
    async fn event_is_sealed(&self) {
        eventually("an event is sealed", async || {
            self.world.count("SELECT size FROM audit_log").await > 0
        })
        .await;
    }

    /// Returns the names of the partitions.
    async fn partitions(&self) -> Vec<String> {
        let names = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_events'::regclass
                     ORDER BY 1";
        sqlx::query_scalar(names)
            .fetch_all(&self.world.db)
            .await
            .unwrap()
    }

    /// Returns the name of the partition of the month that is this many months after the current one.
    async fn month(&self, months: i32) -> String {
        let name = "SELECT 'audit_events_' || to_char(now() AT TIME ZONE 'UTC' + make_interval(months => $1), 'YYYY_MM')";
        sqlx::query_scalar(name)
            .bind(months)
            .fetch_one(&self.world.db)
            .await
            .unwrap()
    }

    /// Creates the partition of a month as the owner.
    async fn create_month(&self, months: i32) -> String {
        let create = "SELECT create_audit_partition(now() + make_interval(months => $1))";
        sqlx::query(create)
            .bind(months)
            .execute(&self.world.db)
            .await
            .unwrap();
        self.month(months).await
    }
}

/// Returns the URL for another role.
fn url_as(url: &str, role: &str) -> String {
    let (before, _) = url.rsplit_once("user=").unwrap();
    format!("{before}user={role}")
}

fn database_name(url: &str) -> String {
    let url = reqwest::Url::parse(url).unwrap();
    url.path().trim_start_matches('/').to_owned()
}

async fn execute(url: &str, statements: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for statement in statements.split(';') {
        connection
            .execute(AssertSqlSafe(statement.to_owned()))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_http_call_works_as_the_service_role() {
    let roles = TwoRoles::new().await;
    let world = &roles.world;
    seed(world, "expired", 3, "1 hour", true).await;
    seed(world, "old", 3, "500 days", false).await;
    let old = roles.create_month(-40).await;
    let last = roles.month(3).await;
    execute(&world.url, &format!("DROP TABLE {last}")).await;

    let settings = [
        ("DATABASE_URL", &*roles.url),
        ("CLEANUP_INTERVAL", "off"),
        ("MINT_COOLDOWN", "0s"),
    ];
    let replica = world.replica_with(&settings).await;
    assert!(
        roles.partitions().await.contains(&last),
        "created at the start"
    );
    execute(&world.url, &format!("DROP TABLE {last}")).await;

    let body = json!({"userId": "u-1"});
    let minted = replica.issue(body.clone()).await;
    minted.assert_minted("fwd=uri-miss; stored");
    replica.issue(body.clone()).await.assert_reused(&minted);
    let renewed = replica.issue_with(body.clone(), "no-cache").await;
    renewed.assert_minted("fwd=request; stored");
    world.sandbox.set_default(Upstream::status(500));
    let failed = replica.issue(json!({"userId": "u-2"})).await;
    failed.assert_problem(502, "upstream-failed");
    world.sandbox.set_default(Upstream::status(400));
    let rejected = replica.issue(json!({"userId": "u-3"})).await;
    rejected.assert_problem(422, "upstream-rejected");
    send(replica.request_by(("admin", "wrong"), Method::GET, "/audit/events"))
        .await
        .assert_problem(401, "unauthenticated");

    let id = minted.text("id");
    for (path, body) in [
        (
            "/bank/tokens/lookup",
            json!({"tokenString": renewed.token()}),
        ),
        (
            &format!("/bank/tokens/{id}/invalidate"),
            json!({"reason": "used"}),
        ),
        (
            "/bank/tokens/invalidate",
            json!({"reason": "used", "tokenString": renewed.token()}),
        ),
        (
            "/bank/tokens/invalidate",
            json!({"reason": "requested", "userId": "u-1"}),
        ),
        ("/maintenance/cleanup", json!({"dryRun": true})),
        ("/clients/admin/rotate", json!({})),
    ] {
        let answer = send(replica.post(path, &body)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    let pass = send(replica.post("/maintenance/cleanup", &json!({}))).await;
    for (member, value) in [
        ("expired", json!(3)),
        ("purgedTokens", json!(3)),
        ("purgedMints", json!(3)),
        ("purgedCombinations", json!(3)),
        ("partitionsCreated", json!(1)),
        ("partitionsDropped", json!(1)),
        ("complete", json!(true)),
    ] {
        assert_eq!(pass.body[member], value, "{member} of {pass:?}");
    }
    let partitions = roles.partitions().await;
    assert!(
        partitions.contains(&last) && !partitions.contains(&old),
        "{partitions:?}"
    );
    roll_up_minutes(&mut PgConnection::connect(&roles.url).await.unwrap())
        .await
        .unwrap();

    for path in [
        &*format!("/bank/tokens/{id}"),
        "/bank/tokens/?userId=u-1",
        "/audit/events?userId=u-1",
        "/audit/events/export",
        "/audit/events?kind=access.denied",
        "/maintenance/cleanup",
        "/clients/",
        "/health/ready",
        "/console/",
        "/console/audit",
    ] {
        let response = replica.request(Method::GET, path).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{path}: {text}");
    }
    assert_eq!(scrape(&replica).await["audit_partitions_ahead_months"], 3.0);
    roles.event_is_sealed().await;
    replica.service.stop().await;
    let denied = "SELECT count(*) FROM audit_events WHERE kind = 'access.denied'";
    assert_eq!(world.count(denied).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_as_the_service_role() {
    let roles = TwoRoles::new().await;
    let replica = roles
        .world
        .replica_with(&[("DATABASE_URL", &roles.url)])
        .await;
    assert_eq!(replica.issue(json!({"userId": "u-1"})).await.status, 201);

    let created = roles
        .run(&[
            "client",
            "create",
            "--name",
            "shop",
            "--scope",
            "tokens:issue",
        ])
        .await;
    let created: Value = serde_json::from_str(&created.out).unwrap();
    let key = created["apiKey"].as_str().unwrap();
    roles.create_month(-40).await;
    roles.event_is_sealed().await;
    let keys = roles.world.variables(&[]);
    let old_key = &keys
        .iter()
        .find(|(name, _)| name == "TOKEN_KEYS")
        .unwrap()
        .1;
    let new_key = "k2:AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
    for arguments in [
        &["client", "list"][..],
        &[
            "client",
            "update",
            key,
            "--name",
            "Shop",
            "--mints-per-hour",
            "5",
        ],
        &["client", "rotate", key],
        &["client", "disable", key],
        &["audit", "export"],
        &["audit", "verify"],
        &["cleanup", "--dry-run"],
        &["cleanup"],
        &["keys", "rotate"],
        &["check", "--online"],
    ] {
        let keys = [("TOKEN_KEYS", &*format!("{new_key},{old_key}"))];
        let ended = roles.run_with(arguments, &keys).await;
        assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");
        let expected = match arguments[0] {
            "keys" => r#""rotated":1"#,
            "cleanup" => r#""partitionsDropped":1"#,
            "check" => "role: ok, ",
            "audit" if arguments[1] == "verify" => r#""compared":"#,
            "audit" => "token.minted",
            _ => key,
        };
        assert!(ended.out.contains(expected), "{arguments:?}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_that_the_service_runs_as_the_owner() {
    let roles = TwoRoles::new().await;
    let checked = run(&["check", "--online"], &roles.world.variables(&[])).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    let note = "role: note, the service runs as the owner";
    assert!(checked.out.contains(note), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_role_cannot_change_the_schema_or_recorded_events() {
    let roles = TwoRoles::new().await;
    let (month, owner) = (roles.month(0).await, &roles.owner);
    // Both tables have a row, so that a statement without an effect is no success.
    roles
        .try_as_service("INSERT INTO audit_events (id, kind) VALUES (gen_random_uuid(), 'x')")
        .await
        .unwrap();
    for statement in [
        "UPDATE audit_events SET kind = 'y'",
        "DELETE FROM audit_events",
        "TRUNCATE audit_events",
        "SELECT FROM audit_events FOR UPDATE",
        "BEGIN; LOCK TABLE audit_events IN ACCESS EXCLUSIVE MODE; COMMIT",
        "ALTER TABLE audit_events ADD COLUMN more text",
        "ALTER TABLE audit_events DISABLE TRIGGER ALL",
        "ALTER TABLE audit_events ALTER COLUMN xid SET DEFAULT '1'",
        "CREATE TRIGGER more BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "DROP TRIGGER audit_events_append_only ON audit_events",
        "DROP TABLE tokens",
        "DROP INDEX audit_events_by_time",
        "REINDEX TABLE tokens",
        "COMMENT ON TABLE tokens IS 'x'",
        "CREATE TABLE more ()",
        "CREATE SCHEMA more",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "ALTER FUNCTION drop_audit_partition(text) RESET ALL",
        "UPDATE audit_retention SET min_age = '1 day'",
        "INSERT INTO audit_retention VALUES (1, '1 day') ON CONFLICT (id) DO UPDATE SET min_age = '1 day'",
        "DELETE FROM audit_horizon",
        "DELETE FROM clients",
        "DELETE FROM audit_tiles",
        "UPDATE _sqlx_migrations SET success = false",
        "SET session_replication_role = replica",
        "SELECT count_minutes(now(), now())",
        &format!("SET ROLE {owner}"),
        &format!("GRANT {owner} TO CURRENT_USER"),
        &format!("SELECT FROM {month}"),
        &format!("UPDATE {month} SET kind = 'y'"),
        &format!("INSERT INTO {month} (id, kind) VALUES (gen_random_uuid(), 'x')"),
        &format!("TRUNCATE {month}"),
        &format!("ALTER TABLE {month} DISABLE TRIGGER ALL"),
        &format!("ALTER TABLE audit_events DETACH PARTITION {month}"),
        &format!("DROP TABLE {month}"),
    ] {
        roles.refuses(statement).await;
    }
    assert_eq!(
        roles
            .world
            .count("SELECT count(*) FROM audit_events WHERE kind = 'x'")
            .await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_role_drops_only_months_past_the_retention() {
    let roles =
        TwoRoles::with_retention(&["--audit-retention", "70d", "--token-retention", "40d"]).await;
    let (kept, due) = (roles.create_month(-2).await, roles.create_month(-4).await);
    execute(
        &roles.world.url,
        "SELECT create_audit_partition('2019-05-01'); ALTER TABLE audit_events DETACH PARTITION audit_events_2019_05;
         CREATE TABLE audit_events_2019_06 (LIKE audit_events); CREATE SCHEMA other;
         CREATE TABLE other.audit_events_2019_07 (); CREATE TABLE archive_2019_05 (LIKE audit_events);
         ALTER TABLE audit_events ATTACH PARTITION archive_2019_05 FOR VALUES FROM ('2031-01-01') TO ('2032-01-01')",
    )
    .await;
    let before = roles.partitions().await;
    for name in [
        &*roles.month(0).await,
        &roles.month(1).await,
        &kept,
        "tokens",
        "audit_events",
        "archive_2019_05",
        "audit_events_2019_99",
        "other.audit_events_2019_07",
        "AUDIT_EVENTS_2019_05",
        "audit_events_2019_05\n",
        "audit_events_2019_05\"; DROP TABLE tokens; --",
        "audit_events_2019_05''; DROP TABLE tokens; --",
        " audit_events_2019_05",
        "",
    ] {
        let result = roles
            .try_as_service(&format!("SELECT drop_audit_partition('{name}')"))
            .await;
        assert!(result.is_err(), "{name}");
    }
    roles.refuses("SELECT drop_audit_partition(NULL)").await;
    // A table that the owner detached or created stays.
    let dropped = async |name: &str| {
        let mut connection = PgConnection::connect(&roles.url).await.unwrap();
        let dropped = sqlx::query_scalar("SELECT drop_audit_partition($1)").bind(name);
        dropped.fetch_one(&mut connection).await.unwrap()
    };
    for name in [
        "audit_events_2019_05",
        "audit_events_2019_06",
        "audit_events_2019_07",
    ] {
        assert!(!dropped(name).await, "{name}");
    }
    assert_eq!(roles.partitions().await, before);
    let tables =
        "SELECT count(*) FROM pg_class WHERE relname ~ '^(tokens|audit_events_2019_0[567])$'";
    assert_eq!(roles.world.count(tables).await, 4);

    assert!(dropped(&due).await);
    assert!(!dropped(&due).await, "again");

    // The retention of the owner applies, not the one of the service.
    let due = roles.create_month(-4).await;
    let grant = ["--grant", &roles.service];
    assert_eq!(roles.migrate(&grant).await.code, 0);
    roles
        .refuses(&format!("SELECT drop_audit_partition('{due}')"))
        .await;
    let settings = [
        "cleanup",
        "--audit-retention",
        "70d",
        "--token-retention",
        "40d",
    ];
    let ended = roles.run(&settings).await;
    assert!(
        ended.out.contains(r#""partitionsDropped":0"#) && ended.out.contains(r#""complete":false"#),
        "{ended:?}"
    );
    assert!(ended.err.contains("AUDIT_RETENTION"), "{ended:?}");
    let old = roles.create_month(-40).await;
    assert_eq!(
        roles
            .migrate(&[&grant[..], &["--audit-retention", "keep"]].concat())
            .await
            .code,
        0
    );
    roles
        .refuses(&format!("SELECT drop_audit_partition('{old}')"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_role_creates_only_months_from_this_one_to_the_next_year() {
    let roles = TwoRoles::new().await;
    let before = roles.partitions().await;
    let month_of =
        |months: i32| format!("SELECT create_audit_partition(now() + interval '{months} months')");
    for statement in [
        &*month_of(-1),
        &month_of(13),
        "SELECT create_audit_partition('2019-05-01')",
        "SELECT create_audit_partition('infinity')",
        "SELECT create_audit_partition('-infinity')",
        "SELECT create_audit_partition(now() - interval '4051 years')",
        "SELECT create_audit_partition(NULL)",
    ] {
        roles.refuses(statement).await;
    }
    assert_eq!(roles.partitions().await, before);
    roles.try_as_service(&month_of(0)).await.unwrap();
    roles.try_as_service(&month_of(12)).await.unwrap();
    assert_eq!(
        roles.partitions().await,
        [before, vec![roles.month(12).await]].concat()
    );
}

/// Tables that take the place of those in the functions of the owner, if these look for them.
const TABLE_TRAPS: &str = "
    CREATE TABLE audit_retention (id smallint, min_age interval);
    INSERT INTO audit_retention VALUES (1, '-1000 years');
    GRANT SELECT ON audit_retention TO PUBLIC;
    CREATE TABLE audit_events (LIKE public.audit_events)";

/// Functions that do the same.
const FUNCTION_TRAPS: &str = "
    CREATE FUNCTION pg_has_role(name, name, text) RETURNS bool LANGUAGE sql AS 'SELECT true';
    CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''9999-01-01''';
    CREATE FUNCTION right(text, int) RETURNS text LANGUAGE sql AS 'SELECT ''2001_01''';
    CREATE FUNCTION format(text, text) RETURNS text LANGUAGE sql AS 'SELECT ''DROP TABLE public.audit_retention''';
    CREATE FUNCTION format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS 'SELECT ''DROP TABLE public.tokens''';
    CREATE FUNCTION to_char(timestamptz, text) RETURNS text LANGUAGE sql AS 'SELECT ''2001_01'''";

#[tokio::test(flavor = "multi_thread")]
async fn objects_and_settings_of_the_caller_do_not_change_the_functions_of_the_owner() {
    let roles = TwoRoles::new().await;
    let (month, next) = (roles.month(0).await, roles.month(3).await);
    let service = &roles.service;
    execute(
        &roles.world.url,
        &format!("CREATE SCHEMA own; GRANT ALL ON SCHEMA own TO {service}; DROP TABLE {next}"),
    )
    .await;
    let temporary = TABLE_TRAPS.replace("CREATE TABLE", "CREATE TEMPORARY TABLE");
    let mut connection = PgConnection::connect(&roles.url).await.unwrap();
    let path = "SET search_path = own, pg_catalog";
    for statements in [path, TABLE_TRAPS, FUNCTION_TRAPS, &temporary] {
        for statement in statements.split(';') {
            connection
                .execute(AssertSqlSafe(statement.to_owned()))
                .await
                .unwrap();
        }
    }
    let before = roles.partitions().await;
    for path in [
        "own, pg_catalog",
        "pg_temp, own, pg_catalog, public",
        "public",
        "pg_catalog",
    ] {
        connection
            .execute(AssertSqlSafe(format!("SET search_path = {path}")))
            .await
            .unwrap();
        let drop = format!("SELECT public.drop_audit_partition('{month}')");
        let refused = connection.execute(AssertSqlSafe(drop)).await.unwrap_err();
        assert!(refused.to_string().contains("is kept"), "{path}: {refused}");
    }
    assert_eq!(roles.partitions().await, before);

    // In this format and zone, a time is not read as the one that was written: IST is another zone.
    for statement in [
        "SET search_path = pg_temp, own, pg_catalog",
        "SET datestyle = 'Postgres, DMY'",
        "SET timezone = 'Asia/Kolkata'",
        "SELECT public.create_audit_partition(pg_catalog.now() + interval '3 months')",
    ] {
        connection.execute(statement).await.unwrap();
    }
    let bounds = "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = $1::regclass";
    let mut utc = PgConnection::connect(&roles.world.url).await.unwrap();
    utc.execute("SET timezone = 'UTC'").await.unwrap();
    let bounds: String = sqlx::query_scalar(bounds)
        .bind(&next)
        .fetch_one(&mut utc)
        .await
        .unwrap();
    let first = next.trim_start_matches("audit_events_").replace('_', "-");
    assert!(
        bounds.contains(&format!("FROM ('{first}-01 00:00:00+00')")),
        "{bounds}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_would_be_too_powerful_is_refused() {
    let roles = TwoRoles::new().await;
    let (owner, service) = (&*roles.owner, &*roles.service);
    let superuser = url_as(&roles.url, "postgres");
    let [member, creator, reader] =
        ["member", "creator", "reader"].map(|name| format!("{service}_{name}"));
    execute(
        &superuser,
        &format!(
            "CREATE ROLE {member} LOGIN NOINHERIT IN ROLE {owner}; CREATE ROLE {creator} LOGIN CREATEROLE;
             CREATE ROLE {reader} LOGIN IN ROLE pg_write_all_data"
        ),
    )
    .await;
    for (role, reason) in [
        ("no-such-role", "no role \"no-such-role\""),
        (owner, "owns the tables"),
        ("postgres", "can become their owner"),
        (&member, "can become their owner"),
        (&creator, "can become their owner"),
        (&reader, "would keep INSERT on _sqlx_migrations"),
    ] {
        let refused = roles.migrate(&["--grant", role]).await;
        assert_eq!((refused.code, &*refused.out), (2, ""), "{refused:?}");
        let line = refused.err.lines().last().unwrap();
        assert!(
            line.starts_with("error: --grant: ") && line.contains(reason),
            "{refused:?}"
        );
    }
    let granted = format!(
        "SELECT count(*) FROM information_schema.role_table_grants WHERE grantee LIKE '{service}\\_%'"
    );
    let granted: i64 = sqlx::query_scalar(AssertSqlSafe(granted))
        .fetch_one(&roles.world.db)
        .await
        .unwrap();
    assert_eq!(granted, 0);

    // A database that Postgres 14 or earlier created lets everyone create objects in `public`.
    execute(&superuser, "GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    assert_eq!(roles.migrate(&["--grant", service]).await.code, 0);
    roles.refuses("CREATE TABLE more ()").await;
}

/// Returns the privileges that are granted in the database, one per line.
async fn privileges(db: &PgPool) -> Vec<String> {
    let privileges = "SELECT c.oid::regclass || ' ' || coalesce(c.relacl::text, '') FROM pg_class c
                      WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                      UNION ALL SELECT oid::regprocedure || ' ' || coalesce(proacl::text, '') FROM pg_proc
                      WHERE pronamespace = 'public'::regnamespace ORDER BY 1";
    sqlx::query_scalar(privileges).fetch_all(db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_grant_leaves_exactly_the_same_privileges() {
    let roles = TwoRoles::new().await;
    let before = privileges(&roles.world.db).await;
    let service = &roles.service;
    let more = format!(
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO {service};
         GRANT EXECUTE ON FUNCTION drop_audit_partition(text) TO PUBLIC"
    );
    execute(&roles.world.url, &more).await;
    assert_ne!(privileges(&roles.world.db).await, before);
    for _ in 0..2 {
        let again = roles.migrate(&["--grant", service]).await;
        assert_eq!(again.code, 0, "{again:?}");
        assert_eq!(privileges(&roles.world.db).await, before);
    }
    let strange = format!("{service} \"x\"; DROP TABLE tokens");
    let quoted = strange.replace('"', "\"\"");
    let mut superuser = PgConnection::connect(&url_as(&roles.url, "postgres"))
        .await
        .unwrap();
    superuser
        .execute(AssertSqlSafe(format!("CREATE ROLE \"{quoted}\"")))
        .await
        .unwrap();
    let granted = roles.migrate(&["--grant", &strange]).await;
    assert_eq!(granted.code, 0, "{granted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_does_not_start_without_a_privilege() {
    let roles = TwoRoles::new().await;
    let service = &roles.service;
    for (revoke, missing) in [
        ("INSERT ON clients", "INSERT on clients"),
        (
            "EXECUTE ON FUNCTION event_time()",
            "EXECUTE on event_time()",
        ),
    ] {
        execute(&roles.world.url, &format!("REVOKE {revoke} FROM {service}")).await;
        let ended = roles.run(&["serve"]).await;
        ended.refused(
            1,
            &format!(
                "the role of DATABASE_URL has no {missing}: run `token-vendor migrate --grant"
            ),
        );
        let checked = roles.run(&["check", "--online"]).await;
        assert!(
            checked.code == 1 && checked.out.contains(missing),
            "{checked:?}"
        );
        assert_eq!(roles.migrate(&["--grant", service]).await.code, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_the_owner_is_refused_to_the_service_role() {
    let roles = TwoRoles::new().await;
    let erase = ["audit", "erase", "--user", "u-1"];
    for arguments in [
        &["migrate"][..],
        &["migrate", "--grant", &roles.service],
        &["serve", "--migrate"],
        &erase,
    ] {
        let refused = roles.run(arguments).await;
        refused.refused(1, "another role owns the tables");
    }
    let erased = run(&erase, &roles.world.variables(&[])).await;
    assert_eq!(erased.code, 0, "{erased:?}");
}

/// A table or function that a later migration adds must be granted to the service, or named here.
#[tokio::test(flavor = "multi_thread")]
async fn the_privileges_of_the_service_on_every_object_are_decided() {
    let world = World::new().await;
    let names = async |query: &'static str| -> Vec<String> {
        sqlx::query_scalar(query)
            .fetch_all(&world.db)
            .await
            .unwrap()
    };
    let objects = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
                   AND relkind NOT IN ('i', 'I') AND NOT relispartition ORDER BY relname";
    assert_eq!(names(objects).await, TABLES.map(|(table, _)| table));

    let functions = "SELECT replace(oid::regprocedure::text, 'timestamp with time zone', 'timestamptz') FROM pg_proc
                     WHERE pronamespace = 'public'::regnamespace";
    let mut decided: Vec<String> = FUNCTIONS.map(|function| function.replace(", ", ",")).into();
    // The previous version calls the first one. Triggers call the second one.
    decided.extend([
        "count_minutes(timestamptz,timestamptz)".into(),
        "refuse_change()".into(),
    ]);
    let mut found = names(functions).await;
    found.sort();
    decided.sort();
    assert_eq!(found, decided);

    let open = "SELECT oid::regprocedure::text FROM pg_proc
                WHERE pronamespace = 'public'::regnamespace AND prosecdef
                  AND (has_function_privilege('public', oid, 'EXECUTE')
                       OR NOT coalesce('search_path=public, pg_temp' = ANY (proconfig), false))";
    assert_eq!(names(open).await, [""; 0]);
}
