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
      // Its queries tell when the connection is lost; without a listener the event would end the process.
      client.on('error', () => undefined);
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

/** The ways in turns, so that noise hits them all; the first round of each warms up. Gives the median rate of each. */
async function compare<N extends string>(rounds: number, ways: Readonly<Record<N, () => Promise<number>>>) {
  const names = Object.keys(ways) as N[];
  const rates = new Map<N, number[]>(names.map((name) => [name, []]));
  for (let round = 0; round <= rounds; round++) {
    for (const name of names) {
      const rate = await ways[name]();
      if (round > 0) rates.get(name)?.push(rate);
    }
  }
  return Object.fromEntries(names.map((name) => [name, median(rates.get(name) ?? [])])) as Record<N, number>;
}

const INSERT = `insert into events (id, workspace_id, stream_id, version, type, schema_version, data, metadata, recorded_at)
  select e.id, $1, $2, $3::integer + e.n::integer, e.type, e.schema_version, e.data, e.metadata, now()
  from unnest($4::text[], $5::text[], $6::smallint[], $7::json[], $8::json[])
    with ordinality as e(id, type, schema_version, data, metadata, n)`;

/** The rows that an append writes, in one transaction whose four statements travel at once. @throws when refused */
async function rawAppend(client: pg.Client, streamId: string, version: number, events: readonly NewEvent[]) {
  const rows = [
    WORKSPACE,
    streamId,
    version,
    events.map(({ id }) => id),
    events.map(({ type }) => type),
    events.map(() => 1),
    events.map(({ data }) => JSON.stringify(data)),
    events.map(({ metadata }) => JSON.stringify(metadata)),
  ];
  const [, { rowCount }] = await Promise.all([
    client.query('begin'),
    client.query({
      name: 'bench-stream',
      text: 'update streams set version = version + $3 where stream_id = $1 and version = $2',
      values: [streamId, version, events.length],
    }),
    client.query({ name: 'bench-events', text: INSERT, values: rows }),
    client.query('commit'),
  ]);
  if (rowCount !== 1) throw new Error('the raw append was refused');
}

/** The same for one event in one statement: the least that can be sent for it. */
const ONE = `with stream as (
    update streams set version = version + 1 where stream_id = $1 and version = $2 returning stream_id, workspace_id, version)
  insert into events (id, workspace_id, stream_id, version, type, schema_version, data, metadata, recorded_at)
  select $3, workspace_id, stream_id, version, $4, $5, $6, $7, now() from stream`;

async function rawAppendOne(client: pg.Client, streamId: string, version: number, event: NewEvent) {
  const { id, type, data, metadata } = event;
  const values = [streamId, version, id, type, 1, JSON.stringify(data), JSON.stringify(metadata)];
  const { rowCount } = await client.query({ name: 'bench-one', text: ONE, values });
  if (rowCount !== 1) throw new Error('the raw append was refused');
}

const BATCH = 100;
const BATCHES = 60;

export const batchBench: Bench = {
  name: 'batch',
  about: 'appends of 100 events to one stream, beside raw SQL that writes the same rows',
  run: (stage) =>
    withLog(stage, async (log, connect) => {
      const client = await connect();
      const way = (append: (streamId: string, version: number, events: NewEvent[]) => Promise<unknown>) => async () => {
        const streamId = `session-${newId('session')}`;
        const batches = Array.from({ length: BATCHES }, () => messages(BATCH));
        await client.query('insert into streams (stream_id, workspace_id) values ($1, $2)', [streamId, WORKSPACE]);
        return perSecond(BATCH * BATCHES, async () => {
          for (const [n, events] of batches.entries()) await append(streamId, n * BATCH, events);
        });
      };
      const rates = await compare(10, {
        ours: way((streamId, expectedVersion, events) =>
          log.append({ appends: [{ streamId, workspaceId: WORKSPACE, expectedVersion, events }] }),
        ),
        raw: way((streamId, version, events) => rawAppend(client, streamId, version, events)),
      });
      return [
        {
          what: 'events per second, batches of 100, one stream, one after another',
          value: rates.ours,
          unit: 'events/s',
          baseline: { what: 'raw SQL, same rows, pipelined on one connection', value: rates.raw },
          target: { of: 'ratio', atLeast: 0.8 },
          detail: `median of 10 rounds of ${BATCHES} batches, both ways in turns; synchronous_commit on`,
        },
      ];
    }),
};

const SESSIONS = 64;
const APPENDS = 60;

export const singleBench: Bench = {
  name: 'single',
  about: 'single appends from 64 sessions, beside one commit each over 64 connections',
  run: (stage) =>
    withLog(stage, async (log, connect) => {
      const clients = await Promise.all(Array.from({ length: SESSIONS }, connect));
      const [first] = clients;
      const way =
        (append: (client: pg.Client, streamId: string, version: number, event: NewEvent) => Promise<unknown>) =>
        async () => {
          const sessions = clients.map((client) => ({
            client,
            streamId: `session-${newId('session')}`,
            events: messages(APPENDS),
          }));
          await first?.query('insert into streams (stream_id, workspace_id) select unnest($1::text[]), $2', [
            sessions.map(({ streamId }) => streamId),
            WORKSPACE,
          ]);
          return perSecond(SESSIONS * APPENDS, async () => {
            await Promise.all(
              sessions.map(async ({ client, streamId, events }) => {
                for (const [n, event] of events.entries()) await append(client, streamId, n, event);
              }),
            );
          });
        };
      const rates = await compare(5, {
        ours: way((_client, streamId, expectedVersion, event) =>
          log.append({ appends: [{ streamId, workspaceId: WORKSPACE, expectedVersion, events: [event] }] }),
        ),
        raw: way((client, streamId, version, event) => rawAppend(client, streamId, version, [event])),
        one: way(rawAppendOne),
      });
      const what = 'events per second, single appends, 64 sessions';
      return [
        {
          what,
          value: rates.ours,
          unit: 'events/s',
          baseline: { what: 'raw SQL, same rows, one commit each, 64 connections', value: rates.raw },
          target: { of: 'ratio', atLeast: 3 },
          detail: `median of 5 rounds of ${SESSIONS * APPENDS} appends, all ways in turns; the same transaction as in \`batch\`; synchronous_commit on`,
        },
        {
          what: `${what}, beside the least raw SQL`,
          value: rates.ours,
          unit: 'events/s',
          baseline: { what: 'the same in one statement each', value: rates.one },
        },
      ];
    }),
};
