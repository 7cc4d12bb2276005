import { setTimeout as sleep } from 'node:timers/promises';
import { newId, type StoredEvent, streamOf } from '@holdfast/contracts';
import { createLogPool, EventLog } from '@holdfast/event-store';
import type pg from 'pg';
import type { Arena } from './bench.ts';

const EVENTS_PER_APPEND = 1_000;
const RELAY_MS = 60_000;

export interface LongSession {
  readonly id: string;
  readonly events: number;
  readonly frames: number;
  readonly lastVersion: number;
}

/** Works on the platform's own log, as its owner. */
export async function withPlatformLog<T>(
  { platform }: Arena,
  work: (log: EventLog, pool: pg.Pool) => Promise<T>,
  onCommitted?: (events: readonly StoredEvent[]) => void,
): Promise<T> {
  const pool = createLogPool({ connectionString: platform.databaseUrl, applicationName: 'bench' });
  const log = new EventLog({ pool, ...(onCommitted === undefined ? {} : { onCommitted }) });
  try {
    return await work(log, pool);
  } finally {
    await log.close();
    await pool.end();
  }
}

/**
 * A session with at least so many events on the wire: one real turn, then the same turn's events again and again with
 * ids of their own. Returns when the relay has published them all and the table's statistics are fresh.
 */
export async function longSession(arena: Arena, atLeastFrames: number): Promise<LongSession> {
  const { api, model } = arena;
  const id = await api.setup.session();
  const stream = await api.stream(id);
  const idle = stream.next('session.status_idle');
  await api.send(id, { id: `${id}-template` });
  await Promise.all([idle, model.call(`${id}-template`)]);
  stream.close();
  const shown = await api.setup.frames(
    `/v1/sessions/${id}/events/stream?after=0`,
    (all) => all.at(-1)?.event === 'session.status_idle',
  );
  return withPlatformLog(arena, async (log, pool) => {
    const streamId = streamOf('session', id);
    const all = await log.readStream(streamId, { afterVersion: 0 });
    const turn = all.slice(all.findIndex(({ type }) => type === 'user.message'));
    const copies = Math.ceil(atLeastFrames / shown.length);
    const workspaceId = all[0]?.workspaceId ?? '';
    for (let left = (copies - 1) * turn.length, n = 0; left > 0; ) {
      const events = Array.from({ length: Math.min(left, EVENTS_PER_APPEND) }, () => {
        const { type, schemaVersion, data, metadata } = turn[n++ % turn.length] as StoredEvent;
        return { id: newId('event'), type, schemaVersion, data, metadata };
      });
      await log.append({ appends: [{ streamId, workspaceId, events }], deadlineAtMs: Date.now() + 30_000 });
      left -= events.length;
    }
    await pool.query('vacuum (analyze) events');
    for (const deadline = Date.now() + RELAY_MS; ; await sleep(100)) {
      const { rows } = await pool.query<{ done: boolean }>(
        'select max(events.position) <= (select position from relay_checkpoint) as done from events',
      );
      if (rows[0]?.done === true) break;
      if (Date.now() > deadline) throw new Error(`the relay did not publish within ${RELAY_MS / 1_000} s`);
    }
    const lastVersion = (await log.streamHead(streamId))?.version ?? 0;
    return { id, events: lastVersion, frames: copies * shown.length, lastVersion };
  });
}
