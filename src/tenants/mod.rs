//! Tenants, their API keys, and who is calling.
