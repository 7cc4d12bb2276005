-- A session's files as they were: what its roots are, and every pack that they need. `version` is the version of the
-- session's log that everything in it covers; the files were found unchanged as late as `through_version`.
create table checkpoints (
  id text primary key,
  workspace_id text not null,
  session_id text not null,
  sandbox_id text not null,
  context_id text,
  version bigint not null,
  through_version bigint not null,
  roots jsonb not null,
  packs text[] not null,
  figures jsonb not null,
  created_at timestamptz not null default clock_timestamp()
);
create index checkpoints_of_session on checkpoints (session_id, version, created_at);
create index checkpoints_of_context on checkpoints (context_id, created_at) where context_id is not null;

-- A pack by what its contents are; the blob holds it sealed. It resolves within its workspace only.
create table checkpoint_packs (
  workspace_id text not null,
  digest text not null,
  bytes bigint not null,
  blob text not null,
  put_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, digest)
);
create index checkpoint_packs_by_age on checkpoint_packs (put_at);
