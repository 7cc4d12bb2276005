import { foldSessionView, type SessionView } from '@holdfast/contracts';
import type { Projection, Transaction } from '@holdfast/event-store';

const PREFIX = 'session-';

/** The read model of sessions: one row per session that was not deleted. */
export const sessionProjection: Projection<SessionView> = {
  name: 'sessions',
  tables: ['sessions'],
  streamPrefix: PREFIX,
  fold: foldSessionView,

  async load(transaction: Transaction, streamIds) {
    const { rows } = await transaction.query<{ id: string; view: SessionView }>(
      'select id, view from sessions where id = any ($1)',
      [streamIds.map((streamId) => streamId.slice(PREFIX.length))],
    );
    return new Map(rows.map((row) => [PREFIX + row.id, row.view]));
  },

  async save(transaction: Transaction, states) {
    const gone: string[] = [];
    const views: SessionView[] = [];
    for (const [streamId, view] of states) {
      if (view === undefined) gone.push(streamId.slice(PREFIX.length));
      else views.push(view);
    }
    if (gone.length > 0) await transaction.query('delete from sessions where id = any ($1)', [gone]);
    if (views.length === 0) return;
    await transaction.query(
      `insert into sessions (id, workspace_id, view, status, version, agent_id, agent_version, environment_id, title, created_at, updated_at, archived_at)
       select v->>'id', v->>'workspaceId', v, v->>'status', (v->>'version')::integer, v->'agent'->>'id', (v->'agent'->>'version')::integer,
              v->>'environmentId', v->>'title', (v->>'createdAt')::timestamptz, (v->>'updatedAt')::timestamptz, (v->>'archivedAt')::timestamptz
       from unnest($1::jsonb[]) as v
       on conflict (id) do update set view = excluded.view, status = excluded.status, version = excluded.version,
         agent_version = excluded.agent_version, title = excluded.title, updated_at = excluded.updated_at, archived_at = excluded.archived_at`,
      [views.map((view) => JSON.stringify(view))],
    );
  },
};
