/**
 * One step of the schema. Steps are applied in order, each in a transaction of its own, and never changed afterwards.
 * The name ends in a 13-digit time, as TypeORM's migration runner wants it.
 */
export interface Migration {
  readonly name: string;
  readonly sql: string;
}

/**
 * The log's own tables and its append function.
 *
 * `log_append` is the whole hot path in one call: it locks the streams of a batch in sorted order (L4), checks version,
 * generation and lease of each append (L1), and stores the accepted ones. A refused append changes nothing and does not
 * touch its neighbours. Arrays instead of JSON: parsing one JSON document for the batch costs more than the insert. Each
 * step is one statement over the whole batch: a loop over its streams cost twice the time. Generic plans: for a batch of one
 * Postgres planned every statement anew at each call.
 */
export const logMigrations: readonly Migration[] = [
  {
    name: 'LogTables1764000000001',
    sql: `
create table events (
  position bigint generated always as identity primary key,
  id text not null unique,
  workspace_id text not null,
  stream_id text not null,
  version integer not null check (version > 0),
  type text not null,
  schema_version smallint not null,
  -- json, not jsonb: a body is read back byte for byte as it was written, so a replay equals what was streamed live
  data json not null,
  metadata json not null,
  recorded_at timestamptz not null,
  txid xid8 not null default pg_current_xact_id(),
  unique (stream_id, version)
);
create index events_in_commit_order on events (txid, position);

create table streams (
  stream_id text primary key,
  workspace_id text not null,
  version integer not null default 0,
  lease_generation integer not null default 0,
  lease_owner text,
  lease_expires_at timestamptz
);

create table idempotency (
  id bigint generated always as identity primary key,
  workspace_id text not null,
  key text,
  path text not null,
  fingerprint text not null,
  attempt integer not null,
  command_id text not null,
  created_at timestamptz not null default clock_timestamp()
);
create unique index idempotency_key on idempotency (workspace_id, key) where key is not null;
create index idempotency_fingerprint on idempotency (workspace_id, fingerprint, created_at) where key is null;
create index idempotency_age on idempotency (created_at);

create table relay_checkpoint (
  name text primary key,
  txid xid8 not null,
  position bigint not null,
  updated_at timestamptz not null default clock_timestamp()
);

create table consumer_handled (
  consumer text not null,
  event_id text not null,
  workspace_id text not null,
  handled_at timestamptz not null default clock_timestamp(),
  primary key (consumer, event_id)
);
`,
  },
  {
    name: 'LogAppend1764000000002',
    sql: `
create function log_append(
  a_request integer[], a_stream text[], a_workspace text[], a_expected integer[], a_generation integer[],
  a_owner text[], a_ttl_ms integer[], a_release boolean[], a_count integer[],
  e_append integer[], e_number integer[], e_id text[], e_type text[], e_schema smallint[], e_data text[], e_metadata text[],
  out verdicts text[], out versions integer[], out generations integer[], out recorded_at timestamptz, out positions bigint[]
) language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
  now_at timestamptz;
begin
  insert into streams (stream_id, workspace_id)
    select s, w from unnest(a_stream, a_workspace, a_expected) as t(s, w, e) where coalesce(e, 0) = 0 order by s
    on conflict do nothing;
  perform 1 from unnest(a_stream) as a(stream_id) join streams s on s.stream_id = a.stream_id order by s.stream_id for update of s;
  now_at := clock_timestamp();
  recorded_at := date_trunc('milliseconds', now_at);
  select array_agg(j.verdict order by j.i), array_agg(j.version order by j.i), array_agg(j.lease_generation order by j.i)
    into verdicts, versions, generations
  from (
    select a.i, s.version, s.lease_generation,
      case when s.stream_id is null then 'version'
           when s.workspace_id <> a.workspace_id then 'workspace'
           when a.owner is null and a.generation <> s.lease_generation then 'generation'
           when a.expected <> s.version then 'version'
           when s.lease_owner <> a.owner and s.lease_expires_at > now_at then 'lease'
           when a.owner is not null and a.generation <> s.lease_generation + 1 then 'generation'
           else 'ok' end as verdict
    from unnest(a_stream, a_workspace, a_expected, a_generation, a_owner) with ordinality
           as a(stream_id, workspace_id, expected, generation, owner, i)
    left join streams s on s.stream_id = a.stream_id) j;
  if 'ok' <> any (verdicts) then
    select array_agg(case when t.verdict = 'ok' and t.request = any (array(
             select u.request from unnest(a_request, verdicts) as u(request, verdict) where u.verdict <> 'ok'))
           then 'neighbour' else t.verdict end order by t.i)
      into verdicts
    from unnest(a_request, verdicts) with ordinality as t(request, verdict, i);
    delete from streams s using unnest(a_stream, verdicts) as a(stream_id, verdict)
      where s.stream_id = a.stream_id and a.verdict <> 'ok' and s.version = 0;
  end if;
  update streams s set
    version = s.version + a.events,
    lease_generation = coalesce(a.generation, s.lease_generation),
    lease_owner = case when a.release then null when a.owner is not null then a.owner else s.lease_owner end,
    lease_expires_at = case when a.release then null
      when a.owner is not null then now_at + a.ttl_ms * interval '1 millisecond' else s.lease_expires_at end
  from unnest(a_stream, verdicts, a_count, a_generation, a_owner, a_ttl_ms, a_release)
         as a(stream_id, verdict, events, generation, owner, ttl_ms, release)
  where s.stream_id = a.stream_id and a.verdict = 'ok';
  with stored as (
    insert into events (id, workspace_id, stream_id, version, type, schema_version, data, metadata, recorded_at)
    select e.id, a.workspace_id, a.stream_id, a.version + e.number, e.type, e.schema_version,
           e.data::json, e.metadata::json, log_append.recorded_at
    from unnest(e_append, e_number, e_id, e_type, e_schema, e_data, e_metadata) with ordinality
           as e(append, number, id, type, schema_version, data, metadata, n)
    join unnest(a_stream, a_workspace, versions, verdicts) with ordinality
           as a(stream_id, workspace_id, version, verdict, i) on a.i = e.append
    where a.verdict = 'ok' order by e.n
    returning events.position
  )
  select array_agg(s.position order by s.position) into positions from stored s;
end $$;
`,
  },
  {
    // Which events of other streams a forked one begins with, oldest first and without a gap. Rows of their own: the row in
    // `streams` is written with every append.
    name: 'StreamPrefixes1764000304000',
    sql: `
create table stream_prefixes (
  stream_id text not null,
  workspace_id text not null,
  source_id text not null,
  after_version integer not null check (after_version >= 0),
  through_version integer not null check (through_version > after_version),
  primary key (stream_id, through_version)
);
`,
  },
];
