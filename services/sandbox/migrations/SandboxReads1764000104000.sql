-- What the lists of sandboxes and pools are read by: most rows are of sandboxes that are gone.
create index sandboxes_alive on sandboxes (workspace_id, created_at, id) where status <> 'destroyed';
create index sandboxes_of_environment on sandboxes (environment_id, created_at, id);
create index sandboxes_by_session on sandboxes (session_id, created_at, id);
create index sandboxes_claimed on sandboxes (environment_id, claimed_at) where claimed_at is not null;
create index sandboxes_starting on sandboxes (environment_id) where status = 'starting';
