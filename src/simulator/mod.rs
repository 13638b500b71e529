//! The two stores, played: a fake App Store and a fake Play that sign for real.
