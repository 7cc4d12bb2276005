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
 * touch its neighbours. Arrays instead of JSON: parsing one JSON document for the batch costs more than the insert.
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
  e_id text[], e_type text[], e_schema smallint[], e_data text[], e_metadata text[],
  out verdicts text[], out versions integer[], out generations integer[], out recorded_at timestamptz, out positions bigint[]
) language plpgsql as $$
declare
  n integer := cardinality(a_stream);
  i integer;
  first_event integer := 1;
  now_at timestamptz;
  refused integer[] := '{}';
  r streams%rowtype;
  taken streams[];
  verdict text;
begin
  insert into streams (stream_id, workspace_id)
    select s, w from unnest(a_stream, a_workspace) as t(s, w) order by s
    on conflict do nothing;
  perform 1 from streams where stream_id = any (a_stream) order by stream_id for update;
  now_at := clock_timestamp();
  recorded_at := date_trunc('milliseconds', now_at);
  verdicts := array_fill('ok'::text, array[n]);
  versions := array_fill(0, array[n]);
  generations := array_fill(0, array[n]);
  taken := array_fill(null::streams, array[n]);
  for i in 1 .. n loop
    select * into r from streams where stream_id = a_stream[i];
    taken[i] := r;
    versions[i] := r.version;
    generations[i] := r.lease_generation;
    verdict := 'ok';
    if r.workspace_id <> a_workspace[i] then
      verdict := 'workspace';
    elsif a_owner[i] is null and a_generation[i] is not null and a_generation[i] <> r.lease_generation then
      verdict := 'generation';
    elsif a_expected[i] is not null and a_expected[i] <> r.version then
      verdict := 'version';
    elsif a_owner[i] is not null then
      if r.lease_owner is not null and r.lease_owner <> a_owner[i] and r.lease_expires_at > now_at then
        verdict := 'lease';
      elsif a_generation[i] <> r.lease_generation + 1 then
        verdict := 'generation';
      end if;
    end if;
    if verdict <> 'ok' then
      verdicts[i] := verdict;
      refused := refused || a_request[i];
    end if;
  end loop;
  for i in 1 .. n loop
    if verdicts[i] = 'ok' and a_request[i] = any (refused) then verdicts[i] := 'neighbour'; end if;
    if verdicts[i] = 'ok' then
      update streams set
        version = version + a_count[i],
        lease_generation = coalesce(a_generation[i], lease_generation),
        lease_owner = case when a_release[i] then null when a_owner[i] is not null then a_owner[i] else lease_owner end,
        lease_expires_at = case when a_release[i] then null
          when a_owner[i] is not null then now_at + a_ttl_ms[i] * interval '1 millisecond' else lease_expires_at end
      where stream_id = a_stream[i];
    elsif (taken[i]).version = 0 then
      delete from streams where stream_id = a_stream[i] and version = 0;
    end if;
  end loop;
  with wanted as (
    select e.n, a_workspace[a.i] as workspace_id, a_stream[a.i] as stream_id,
           versions[a.i] + (e.n - a.first_n + 1)::integer as version, e.id, e.type, e.schema_version, e.data, e.metadata
    from (select g as i, verdicts[g] as verdict, a_count[g] as events,
                 1 + coalesce(sum(a_count[g]) over (order by g rows between unbounded preceding and 1 preceding), 0) as first_n
          from generate_series(1, n) as g) a
    join unnest(e_id, e_type, e_schema, e_data, e_metadata) with ordinality as e(id, type, schema_version, data, metadata, n)
      on e.n >= a.first_n and e.n < a.first_n + a.events
    where a.verdict = 'ok'
  ), stored as (
    insert into events (id, workspace_id, stream_id, version, type, schema_version, data, metadata, recorded_at)
    select w.id, w.workspace_id, w.stream_id, w.version, w.type, w.schema_version, w.data::json, w.metadata::json,
           log_append.recorded_at
    from wanted w order by w.n
    returning events.position
  )
  select array_agg(s.position order by s.position) into positions from stored s;
end $$;
`,
  },
];
