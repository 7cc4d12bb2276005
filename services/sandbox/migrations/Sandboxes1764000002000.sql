create table sandboxes (
  id text primary key,
  -- A number of its own, for the host identity of its processes.
  serial integer generated always as identity unique,
  workspace_id text not null,
  session_id text not null,
  environment_id text not null,
  context_key text,
  status text not null check (status in ('starting', 'ready', 'suspended', 'failed', 'destroyed')),
  -- The replica that serves it; a lease by Postgres' clock.
  owner text,
  owner_expires_at timestamptz,
  incarnation integer not null default 0,
  journal_id text,
  isolation text,
  -- What its runner has to prove: the newest token, and the key that was bound to it.
  token_hash text,
  public_key text,
  environment jsonb not null,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp()
);
create unique index sandboxes_of_session on sandboxes (session_id) where status <> 'destroyed';
create index sandboxes_of_workspace on sandboxes (workspace_id, created_at, id);
