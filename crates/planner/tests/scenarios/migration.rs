//! Migrations, stage by stage.
