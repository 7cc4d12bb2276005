-- Sessions that are over and get no sandbox any more, also where the request for one comes after the news of the end. Kept for
-- a day, which is longer than any request is on its way.
create table ended_sessions (
  session_id text primary key,
  workspace_id text not null,
  ended_at timestamptz not null default clock_timestamp()
);
create index ended_sessions_by_time on ended_sessions (ended_at);
