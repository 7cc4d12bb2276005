import { newId } from '@holdfast/contracts';
import { createLogPool, EventLog, migrate, type NewEvent } from '@holdfast/event-store';
import pg from 'pg';
import { type Bench, median, type Stage } from '../bench.ts';

/** A log on a Postgres of its own; `connect` gives a plain connection to the same database. */
async function withLog<T>(stage: Stage, work: (log: EventLog, connect: () => Promise<pg.Client>) => Promise<T>) {
  const connectionString = await stage.postgres();
  const pool = createLogPool({ connectionString, applicationName: 'bench' });
  const clients: pg.Client[] = [];
  try {
    await migrate(pool);
    const log = new EventLog({ pool });
    const result = await work(log, async () => {
      // Queries that are asked for at once travel at once, as the log's own do.
      const client = new pg.Client({ connectionString, pipeline: true });
      await client.connect();
      clients.push(client);
      return client;
    });
    await log.close();
    return result;
  } finally {
    await Promise.all(clients.map((client) => client.end()));
    await pool.end();
  }
}

/** An event of about 300 bytes, as a short answer of a model is. */
function message(): NewEvent {
  return {
    id: newId('event'),
    type: 'agent.message',
    schemaVersion: 1,
    data: { content: [{ type: 'text', text: 'The quick brown fox jumps over the lazy dog. '.repeat(4) }] },
    metadata: { actor: { type: 'service', id: 'session' }, command_id: newId('command') },
  };
}
const messages = (count: number): NewEvent[] => Array.from({ length: count }, message);

const WORKSPACE = 'wrkspc_bench';

async function perSecond(events: number, work: () => Promise<void>): Promise<number> {
  const startedAt = performance.now();
  await work();
  return (events * 1_000) / (performance.now() - startedAt);
}

/** Both ways in turns, so that noise hits both; the first round of each warms up. */
async function compare(rounds: number, ours: () => Promise<number>, raw: () => Promise<number>) {
  const rates = { ours: [] as number[], raw: [] as number[] };
  for (let round = 0; round <= rounds; round++) {
    const [own, other] = [await ours(), await raw()];
    if (round === 0) continue;
    rates.ours.push(own);
    rates.raw.push(other);
  }
  return { ours: median(rates.ours), raw: median(rates.raw) };
}

const INSERT = `insert into events (id, workspace_id, stream_id, version, type, schema_version, data, metadata, recorded_at)
  select e.id, $1, $2, $3::integer + e.n::integer, e.type, e.schema_version, e.data, e.metadata, now()
  from unnest($4::text[], $5::text[], $6::smallint[], $7::json[], $8::json[])
    with ordinality as e(id, type, schema_version, data, metadata, n)`;

const insertValues = (streamId: string, version: number, events: readonly NewEvent[]): unknown[] => [
  WORKSPACE,
  streamId,
  version,
  events.map(({ id }) => id),
  events.map(({ type }) => type),
  events.map(({ schemaVersion }) => schemaVersion),
  events.map(({ data }) => JSON.stringify(data)),
  events.map(({ metadata }) => JSON.stringify(metadata)),
];

const BATCH = 100;
const BATCHES = 100;

export const batchBench: Bench = {
  name: 'batch',
  about: 'appends of 100 events to one stream, beside raw SQL that writes the same rows',
  run: (stage) =>
    withLog(stage, async (log, connect) => {
      const client = await connect();
      const ours = async (): Promise<number> => {
        const streamId = `session-${newId('session')}`;
        const batches = Array.from({ length: BATCHES }, () => messages(BATCH));
        return perSecond(BATCH * BATCHES, async () => {
          for (const [n, events] of batches.entries())
            await log.append({ appends: [{ streamId, workspaceId: WORKSPACE, expectedVersion: n * BATCH, events }] });
        });
      };
      const raw = async (): Promise<number> => {
        const streamId = `session-${newId('session')}`;
        const batches = Array.from({ length: BATCHES }, () => messages(BATCH));
        await client.query('insert into streams (stream_id, workspace_id) values ($1, $2)', [streamId, WORKSPACE]);
        return perSecond(BATCH * BATCHES, async () => {
          for (const [n, events] of batches.entries()) {
            const [, { rowCount }] = await Promise.all([
              client.query('begin'),
              client.query({
                name: 'bench-stream',
                text: 'update streams set version = version + $3 where stream_id = $1 and version = $2',
                values: [streamId, n * BATCH, BATCH],
              }),
              client.query({ name: 'bench-insert', text: INSERT, values: insertValues(streamId, n * BATCH, events) }),
              client.query('commit'),
            ]);
            if (rowCount !== 1) throw new Error('the raw append was refused');
          }
        });
      };
      const rates = await compare(5, ours, raw);
      return [
        {
          what: 'events per second, batches of 100, one stream, one after another',
          value: rates.ours,
          unit: 'events/s',
          baseline: { what: 'raw SQL, same rows, pipelined on one connection', value: rates.raw },
          target: { of: 'ratio', atLeast: 0.8 },
          detail: `median of 5 rounds of ${BATCHES} batches, both ways in turns; synchronous_commit on`,
        },
      ];
    }),
};

const SESSIONS = 64;
const APPENDS = 60;

/** The stream's row and one event in one statement, and so in one commit and one round trip. */
const ONE = `with stream as (
    update streams set version = version + 1 where stream_id = $1 and version = $2 returning stream_id, workspace_id, version)
  insert into events (id, workspace_id, stream_id, version, type, schema_version, data, metadata, recorded_at)
  select $3, workspace_id, stream_id, version, $4, $5, $6, $7, now() from stream`;

export const singleBench: Bench = {
  name: 'single',
  about: 'single appends from 64 sessions, beside one commit each over 64 connections',
  run: (stage) =>
    withLog(stage, async (log, connect) => {
      const clients = await Promise.all(Array.from({ length: SESSIONS }, connect));
      const streams = (): { streamId: string; events: NewEvent[] }[] =>
        Array.from({ length: SESSIONS }, () => ({
          streamId: `session-${newId('session')}`,
          events: messages(APPENDS),
        }));
      const ours = async (): Promise<number> => {
        const all = streams();
        return perSecond(SESSIONS * APPENDS, async () => {
          await Promise.all(
            all.map(async ({ streamId, events }) => {
              for (const [n, event] of events.entries())
                await log.append({
                  appends: [{ streamId, workspaceId: WORKSPACE, expectedVersion: n, events: [event] }],
                });
            }),
          );
        });
      };
      const raw = async (): Promise<number> => {
        const all = streams();
        await clients[0]?.query('insert into streams (stream_id, workspace_id) select unnest($1::text[]), $2', [
          all.map(({ streamId }) => streamId),
          WORKSPACE,
        ]);
        return perSecond(SESSIONS * APPENDS, async () => {
          await Promise.all(
            all.map(async ({ streamId, events }, s) => {
              for (const [n, { id, type, schemaVersion, data, metadata }] of events.entries()) {
                const values = [streamId, n, id, type, schemaVersion, JSON.stringify(data), JSON.stringify(metadata)];
                const result = await clients[s]?.query({ name: 'bench-one', text: ONE, values });
                if (result?.rowCount !== 1) throw new Error('the raw append was refused');
              }
            }),
          );
        });
      };
      const rates = await compare(5, ours, raw);
      return [
        {
          what: 'events per second, single appends, 64 sessions',
          value: rates.ours,
          unit: 'events/s',
          baseline: { what: 'raw SQL, one statement and commit each, 64 connections', value: rates.raw },
          target: { of: 'ratio', atLeast: 3 },
          detail: `median of 5 rounds of ${SESSIONS * APPENDS} appends, both ways in turns; synchronous_commit on`,
        },
      ];
    }),
};
