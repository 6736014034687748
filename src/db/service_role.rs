//! The role of the service in the database, which owns nothing: it cannot alter tables, disable triggers or drop recent
//! events. `migrate` runs as the owner. One role for both works too.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::DbError;
use super::schema::{CONNECT_TIMEOUT, try_connect};

/// All tables, and the privileges of the service on each. A new table needs a line here.
pub const TABLES: [(&str, &str); 16] = [
    ("_sqlx_migrations", "SELECT"),
    ("audit_events", "SELECT, INSERT"),
    ("audit_horizon", "SELECT, UPDATE"),
    ("audit_log", "SELECT, UPDATE"),
    ("audit_retention", "SELECT"),
    ("audit_tiles", "SELECT, INSERT, UPDATE"),
    ("client_minutes", "SELECT, INSERT, DELETE"),
    ("clients", "SELECT, INSERT, UPDATE"),
    ("handout_minutes", "SELECT, INSERT, DELETE"),
    ("key_check", "SELECT, INSERT"),
    ("maintenance", "SELECT, UPDATE"),
    ("mints", "SELECT, INSERT, UPDATE, DELETE"),
    ("replicas", "SELECT, INSERT, UPDATE, DELETE"),
    ("slots", "SELECT, INSERT, UPDATE, DELETE"),
    ("tokens", "SELECT, INSERT, UPDATE, DELETE"),
    ("upstream_budget", "SELECT, UPDATE"),
];

/// The functions that this version and the previous one call. A new one needs a line here.
pub const FUNCTIONS: [&str; 6] = [
    "count_handout_minutes(timestamptz, timestamptz)",
    "count_minutes_by_client(timestamptz, timestamptz)",
    "create_audit_partition(timestamptz)",
    "drop_audit_partition(text)",
    "event_id()",
    "event_time()",
];

/// The reason why a role was not set up.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// The role does not exist.
    #[error("--grant: there is no role {0:?}; create it with CREATE ROLE name LOGIN")]
    UnknownRole(String),
    /// The role owns the tables or their schema, or can become a role that does.
    #[error(
        "--grant: the role {0:?} owns the tables or can become their owner; create a role that owns nothing"
    )]
    Owner(String),
    /// The role has a privilege from a group or from PUBLIC.
    #[error(
        "--grant: the role {role:?} would keep {privilege}; revoke it from its groups and from PUBLIC"
    )]
    Excess {
        /// The name of the role.
        role: String,
        /// The privilege, such as `DELETE on audit_events`.
        privilege: String,
    },
    /// A statement failed.
    #[error(transparent)]
    Failed(#[from] DbError),
}

impl From<sqlx::Error> for GrantError {
    fn from(error: sqlx::Error) -> Self {
        GrantError::Failed(error.into())
    }
}

/// Creates a role that can log in without a password, unless it exists. For the private Postgres of `dev`.
pub async fn create_role(options: &PgConnectOptions, role: &str) -> Result<(), DbError> {
    let mut connection = try_connect(options, CONNECT_TIMEOUT).await?;
    let statement = sqlx::query_scalar!(
        r#"SELECT format('CREATE ROLE %I LOGIN', $1::text) AS "statement!"
           WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"#,
        role,
    );
    if let Some(statement) = statement.fetch_optional(&mut connection).await? {
        // The server quoted the name.
        connection.execute(AssertSqlSafe(statement)).await?;
    }
    Ok(())
}

/// Gives the role exactly the privileges of the service, and stores the retention of audit events. The role cannot drop
/// events before it. `None` keeps them forever.
pub async fn grant_privileges(
    options: &PgConnectOptions,
    role: &str,
    retention: Option<Duration>,
) -> Result<(), GrantError> {
    let mut connection = try_connect(options, CONNECT_TIMEOUT).await?;
    let mut tx = connection.begin().await?;
    // Its lock makes simultaneous calls wait, which could not change one table at once.
    sqlx::query!(
        "UPDATE audit_retention SET min_age = make_interval(secs => $1)",
        retention.map(|retention| retention.as_secs_f64()),
    )
    .execute(&mut *tx)
    .await?;
    match is_owner(&mut tx, Some(role)).await? {
        None => return Err(GrantError::UnknownRole(role.to_owned())),
        Some(true) => return Err(GrantError::Owner(role.to_owned())),
        Some(false) => {}
    }
    let names = sqlx::query!(
        r#"SELECT quote_ident($1) AS "role!", relnamespace::regnamespace::text AS "schema!",
                  (SELECT string_agg(inhrelid::regclass::text, ', ') FROM pg_inherits WHERE inhparent = c.oid)
                      AS partitions
           FROM pg_class c WHERE oid = 'audit_events'::regclass"#,
        role,
    )
    .fetch_one(&mut *tx)
    .await?;
    let (role_name, schema) = (names.role, names.schema);
    let tables = TABLES.map(|(table, _)| table).into_iter();
    let tables: Vec<_> = tables.chain(names.partitions.as_deref()).collect();
    let mut statements = vec![
        format!("REVOKE ALL ON TABLE {} FROM {role_name}", tables.join(", ")),
        // A function or table in the schema could take the place of one that the owner uses.
        format!("REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {role_name}"),
        // A restore without privileges leaves them executable by everybody.
        format!(
            "REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC",
            FUNCTIONS.join(", ")
        ),
        format!("GRANT USAGE ON SCHEMA {schema} TO {role_name}"),
        format!(
            "GRANT EXECUTE ON FUNCTION {} TO {role_name}",
            FUNCTIONS.join(", ")
        ),
    ];
    statements.extend(
        TABLES.map(|(table, privileges)| format!("GRANT {privileges} ON {table} TO {role_name}")),
    );
    for statement in statements {
        // The names are constants, or quoted by the server.
        tx.execute(AssertSqlSafe(statement)).await?;
    }
    if let Some(privilege) = find_excess(&mut tx, role).await? {
        let role = role.to_owned();
        return Err(GrantError::Excess { role, privilege });
    }
    tx.commit().await?;
    Ok(())
}

/// Returns true if the role owns the audit log or its schema, or can become a role that does. Superusers can.
/// Returns `None` if there is no such role. `None` as the role is the one of this connection.
pub async fn is_owner(
    connection: &mut PgConnection,
    role: Option<&str>,
) -> Result<Option<bool>, DbError> {
    let is_owner = sqlx::query_scalar!(
        r#"SELECT pg_has_role(r.oid, c.relowner, 'MEMBER') OR pg_has_role(r.oid, n.nspowner, 'MEMBER')
                  OR r.rolcreaterole AS "is_owner!"
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_roles r
           WHERE c.oid = 'audit_events'::regclass AND r.rolname = coalesce($1, current_user)"#,
        role,
    );
    Ok(is_owner.fetch_optional(connection).await?)
}

/// Finds a privilege of the role that the service does not need.
async fn find_excess(connection: &mut PgConnection, role: &str) -> Result<Option<String>, DbError> {
    let (tables, granted) = columns();
    let excess = sqlx::query_scalar!(
        r#"SELECT format('%s on %s', privilege, name) AS "privilege!"
           FROM unnest($2::text[], $3::text[]) AS t(name, granted),
                unnest('{SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER}'::text[]) AS privilege
           WHERE has_table_privilege($1, name, privilege) AND privilege <> ALL (string_to_array(granted, ', '))
           UNION ALL
           SELECT format('CREATE on the schema %s', relnamespace::regnamespace) FROM pg_class
           WHERE oid = 'audit_events'::regclass AND has_schema_privilege($1, relnamespace, 'CREATE')"#,
        role,
        &tables,
        &granted,
    );
    Ok(excess.fetch_optional(connection).await?)
}

/// Finds a privilege that the service needs and the role of this connection lacks.
pub async fn find_missing_privilege(
    connection: &mut PgConnection,
) -> Result<Option<String>, DbError> {
    let (tables, granted) = columns();
    let functions = FUNCTIONS.map(str::to_owned);
    let missing = sqlx::query_scalar!(
        r#"SELECT format('%s on %s', privilege, name) AS "privilege!"
           FROM unnest($1::text[], $2::text[]) AS t(name, granted), unnest(string_to_array(granted, ', ')) AS privilege
           WHERE NOT has_table_privilege(name, privilege)
           UNION ALL
           SELECT format('EXECUTE on %s', name) FROM unnest($3::text[]) AS name
           WHERE NOT has_function_privilege(name, 'EXECUTE')"#,
        &tables,
        &granted,
        &functions,
    );
    Ok(missing.fetch_optional(connection).await?)
}

/// Returns the columns of [`TABLES`].
fn columns() -> (Vec<String>, Vec<String>) {
    let rows = TABLES.iter();
    rows.map(|(table, granted)| ((*table).to_owned(), (*granted).to_owned()))
        .unzip()
}
