//! local_postgres
