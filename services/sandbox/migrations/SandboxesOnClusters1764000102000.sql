-- Where a sandbox runs on a cluster, why it is not ready, and how its present incarnation began.
alter table sandboxes
  add column provider text not null default 'local',
  add column namespace text,
  add column claim text,
  add column pod text,
  add column pod_uid text,
  add column node text,
  add column launch text check (launch in ('warm', 'cold', 'resumed')),
  add column reason jsonb,
  add column claimed_at timestamptz,
  add column ready_at timestamptz,
  add column used_at timestamptz;
create unique index sandboxes_of_pod on sandboxes (pod_uid) where pod_uid is not null and status <> 'destroyed';
create index sandboxes_of_claim on sandboxes (namespace, claim) where status <> 'destroyed';

-- The one key that may link as a pod (X5), bound before the pod is claimed; gone with the pod.
create table runner_keys (
  pod_uid text primary key,
  workspace_id text not null,
  namespace text not null,
  pod text not null,
  public_key text not null,
  -- How often the kubelet had restarted its container by then: after another restart another key may take its place.
  restarts integer not null,
  bound_at timestamptz not null default clock_timestamp()
);

-- Environments as their events say: what templates and pools are made from.
create table sandbox_environments (
  environment_id text primary key,
  workspace_id text not null,
  config jsonb not null,
  -- Archived or deleted: nothing is kept warm any more.
  retired boolean not null default false,
  -- Position of the newest event that was taken in.
  position bigint not null
);

-- How full each pool was when it was looked at last.
create table sandbox_pools (
  environment_id text primary key,
  workspace_id text not null,
  size integer not null,
  ready integer not null,
  reason jsonb,
  observed_at timestamptz not null default clock_timestamp()
);

-- Which installation the objects on a cluster belong to: several may share one.
create table sandbox_installation (
  one boolean primary key default true check (one),
  id text not null
);
insert into sandbox_installation (id) values (substr(md5(random()::text || clock_timestamp()::text), 1, 8));
