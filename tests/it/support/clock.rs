//! A database clock that a test can shift.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::World;

impl World {
    /// Shifts the clock of the database, which an interval such as `1 hour` is added to.
    ///
    /// Functions in `public` hide those of `pg_catalog` from connections that are opened after the first call.
    pub async fn shift_clock(&self, by: &str) {
        let options: PgConnectOptions = self.url.parse().unwrap();
        let database = options.get_database().unwrap();
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        let mut statements = vec![
            "CREATE TABLE IF NOT EXISTS public.clock_shift (by interval NOT NULL)".to_owned(),
            format!(
                "WITH old AS (DELETE FROM public.clock_shift) INSERT INTO public.clock_shift VALUES ('{by}')"
            ),
            format!("ALTER DATABASE {database} SET search_path = public, pg_catalog"),
        ];
        for clock in ["clock_timestamp", "statement_timestamp", "now"] {
            statements.push(format!(
                "CREATE OR REPLACE FUNCTION public.{clock}() RETURNS timestamptz LANGUAGE sql VOLATILE AS
                 'SELECT pg_catalog.{clock}() + (SELECT by FROM public.clock_shift)'"
            ));
        }
        for statement in statements {
            connection.execute(AssertSqlSafe(statement)).await.unwrap();
        }
    }
}
