import type { Migration } from '@holdfast/event-store';

/** The catalogue: what sessions are made of, who may use it, and the read model of sessions. */
export const catalogueMigrations: readonly Migration[] = [
  {
    name: 'Catalogue1764000001000',
    sql: `
create table workspaces (
  id text primary key,
  name text not null,
  created_at timestamptz not null default clock_timestamp()
);

create table api_keys (
  id text primary key,
  workspace_id text not null references workspaces,
  name text not null,
  kind text not null check (kind in ('api_key', 'dashboard', 'link')),
  hash bytea not null unique,
  hint text not null,
  parent_id text references api_keys,
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,
  revoked_at timestamptz
);
create index api_keys_of_workspace on api_keys (workspace_id, created_at, id);
create index api_keys_of_parent on api_keys (parent_id) where parent_id is not null;

create table agents (
  id text primary key,
  workspace_id text not null references workspaces,
  resource jsonb not null,
  version integer not null,
  created_at timestamptz not null,
  archived_at timestamptz
);
create index agents_of_workspace on agents (workspace_id, created_at, id);

create table agent_versions (
  agent_id text not null references agents,
  version integer not null,
  workspace_id text not null references workspaces,
  resource jsonb not null,
  created_at timestamptz not null,
  primary key (agent_id, version)
);

create table environments (
  id text primary key,
  workspace_id text not null references workspaces,
  name text not null,
  resource jsonb not null,
  created_at timestamptz not null,
  archived_at timestamptz
);
create unique index environments_name on environments (workspace_id, name) where archived_at is null;
create index environments_of_workspace on environments (workspace_id, created_at, id);

create table sessions (
  id text primary key,
  workspace_id text not null,
  view jsonb not null,
  status text not null,
  version integer not null,
  agent_id text not null,
  agent_version integer not null,
  environment_id text not null,
  title text,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  archived_at timestamptz
) with (fillfactor = 70);
create index sessions_of_workspace on sessions (workspace_id, created_at, id);
create index sessions_of_agent on sessions (workspace_id, agent_id, created_at);
create index sessions_at_work on sessions (id) where status in ('running', 'rescheduling');
create index sessions_of_environment on sessions (environment_id) where archived_at is null;
`,
  },
  {
    // Few sessions wait for somebody among many that are idle; the view of each would have to be read to find them.
    name: 'SessionsNeedAction1764000003000',
    sql: `
alter table sessions add column needs_action boolean not null
  generated always as (status = 'idle' and coalesce(view->'stopReason'->>'type', '') = 'requires_action') stored;
create index sessions_needing_action on sessions (workspace_id, created_at, id) where needs_action;
`,
  },
  {
    // Answers have every member of an environment's configuration; those from before this one are given it.
    name: 'EnvironmentSandboxes1764000103000',
    sql: `
update environments set resource = jsonb_set(resource, '{config,x_sandbox}', '{"image": null, "cpu_millis": null,
  "memory_mib": null, "runtime_class": null, "node_selector": {}, "tolerations": [], "workspace": "volume",
  "workspace_mib": null, "storage_class": null, "pool_size": 0, "idle_seconds": null, "max_lifetime_seconds": null}')
where not resource->'config' ? 'x_sandbox';
`,
  },
  {
    // A blob is in file_blobs for as long as it is kept for files; held_at spares one that was put or let go of just now.
    name: 'Files1764000204000',
    sql: `
create table files (
  id text primary key,
  workspace_id text not null references workspaces,
  resource jsonb not null,
  digest text not null,
  size_bytes bigint not null,
  scope_id text,
  created_at timestamptz not null,
  expires_at timestamptz
);
create index files_of_workspace on files (workspace_id, created_at, id) include (size_bytes);
create index files_of_scope on files (workspace_id, scope_id, created_at, id) where scope_id is not null;
create index files_of_blob on files (workspace_id, digest);

create table file_blobs (
  workspace_id text not null,
  digest text not null,
  held_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, digest)
);
create index file_blobs_by_age on file_blobs (held_at);
`,
  },
  {
    // A column of its own: an index over the view would make every update of it a new row version for all indexes.
    name: 'SessionResources1764000205000',
    sql: `
alter table sessions add column resources jsonb not null
  generated always as (coalesce(view->'resources', '[]')) stored;
create index sessions_with_resources on sessions using gin (resources jsonb_path_ops) where resources <> '[]';
`,
  },
  {
    // The family of a session: its first ancestor, and all that was forked from it and from its forks.
    name: 'SessionFamilies1764000305000',
    sql: `
alter table sessions add column fork_root text
  generated always as (view->'forkedFrom'->>'root_session_id') stored;
create index sessions_of_family on sessions (workspace_id, fork_root) where fork_root is not null;
`,
  },
  {
    // Who runs the tools of self-hosted environments: their keys, the workers' leases on sessions, and who asks for work.
    name: 'EnvironmentWorkers1764000305500',
    sql: `
alter table api_keys drop constraint api_keys_kind_check,
  add constraint api_keys_kind_check check (kind in ('api_key', 'dashboard', 'link', 'environment_key', 'work_token')),
  add column environment_id text references environments on delete cascade,
  add column work_id text;
create index api_keys_of_environment on api_keys (environment_id, created_at, id) where kind = 'environment_key';
create index api_keys_of_work on api_keys (expires_at) where kind = 'work_token';

create table work_items (
  id text primary key,
  workspace_id text not null references workspaces,
  environment_id text not null references environments on delete cascade,
  session_id text not null,
  state text not null check (state in ('queued', 'starting', 'active', 'stopping', 'stopped')),
  worker_id text,
  token_id text not null unique,
  metadata jsonb not null default '{}',
  ttl_seconds integer,
  lease_expires_at timestamptz not null,
  created_at timestamptz not null default clock_timestamp(),
  acknowledged_at timestamptz,
  started_at timestamptz,
  latest_heartbeat_at timestamptz,
  previous_heartbeat_at timestamptz,
  stop_requested_at timestamptz,
  stopped_at timestamptz
);
create unique index work_items_alive on work_items (session_id) where state <> 'stopped';
create index work_items_of_environment on work_items (environment_id, created_at, id);
create index work_items_leased on work_items (lease_expires_at) where state <> 'stopped';

create table work_pollers (
  environment_id text not null references environments on delete cascade,
  worker_id text not null,
  polled_at timestamptz not null,
  primary key (environment_id, worker_id)
);

-- A session that waits for its worker alone needs nobody's action.
alter table sessions drop column needs_action, add column needs_action boolean not null generated always as
    (status = 'idle' and coalesce(view->'stopReason'->>'type', '') = 'requires_action'
      and not coalesce(view->'stopReason'->'event_ids' <@ coalesce(view->'worker'->'calls', '[]'), false)) stored,
  add column needs_worker boolean not null generated always as
    (archived_at is null and jsonb_array_length(coalesce(view->'worker'->'calls', '[]')) > 0) stored;
create index sessions_needing_action on sessions (workspace_id, created_at, id) where needs_action;
create index sessions_needing_worker on sessions (environment_id) where needs_worker;
`,
  },
];
