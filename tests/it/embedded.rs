//! The private Postgres: started, stopped, adopted, shared and refused.
