import { streamOf } from '@holdfast/contracts';
import pg from 'pg';
import Cursor from 'pg-cursor';
import { type Arena, type Bench, median } from '../bench.ts';
import { longSession } from '../long-session.ts';

const ROUNDS = 3;

export const listBench: Bench = {
  name: 'list',
  about: '10,000 events of a session listed in pages of 1,000',
  async run(stage) {
    const arena = await stage.arena();
    const { id } = await longSession(arena, 12_000);
    const walls: number[] = [];
    for (let round = 0; round <= ROUNDS; round++) {
      const startedAt = performance.now();
      let listed = 0;
      for (let page: string | null = ''; page !== null && listed < 10_000; ) {
        const text = await arena.api.get(
          `/v1/sessions/${id}/events?limit=1000${page === '' ? '' : `&page=${encodeURIComponent(page)}`}`,
        );
        const answer = JSON.parse(text) as { data: unknown[]; next_page: string | null };
        listed += answer.data.length;
        page = answer.next_page;
      }
      if (listed !== 10_000) throw new Error(`${listed} events were listed`);
      // The first round warms up.
      if (round > 0) walls.push(performance.now() - startedAt);
    }
    return [
      {
        what: '10,000 events listed, pages of 1,000, one after another',
        value: median(walls),
        unit: 'ms',
        target: { atMost: 350 },
        detail: `median of ${ROUNDS}; parsing the pages at the client included`,
      },
    ];
  },
};

/** The same rows through pg-cursor, bodies left as text: the fastest read that Node has from Postgres. */
async function cursorMs({ platform }: Arena, streamId: string, expected: number): Promise<number> {
  const client = new pg.Client({ connectionString: platform.databaseUrl });
  await client.connect();
  try {
    const startedAt = performance.now();
    const cursor = client.query(
      new Cursor<unknown[]>(
        'select id, version, type, data::text, recorded_at::text from events where stream_id = $1 order by version',
        [streamId],
        { rowMode: 'array' },
      ),
    );
    let read = 0;
    for (let rows = await cursor.read(5_000); rows.length > 0; rows = await cursor.read(5_000)) read += rows.length;
    const ms = performance.now() - startedAt;
    if (read !== expected) throw new Error(`pg-cursor read ${read} of ${expected}`);
    return ms;
  } finally {
    await client.end();
  }
}

export const replayBench: Bench = {
  name: 'replay',
  about: '100,000 events of a session from cursor 0 over SSE, beside pg-cursor alone',
  async run(stage) {
    const arena = await stage.arena();
    const { id, events, frames, lastVersion } = await longSession(arena, 100_000);
    const walls: number[] = [];
    const floors: number[] = [];
    let bytes = 0;
    for (let round = 0; round <= ROUNDS; round++) {
      floors.push(await cursorMs(arena, streamOf('session', id), events));
      const startedAt = performance.now();
      const { endedAt, text } = await arena.api.replay(id, lastVersion);
      walls.push(endedAt - startedAt);
      bytes = text.length;
      const seen = text.match(/^id: /gm)?.length ?? 0;
      if (seen !== frames) throw new Error(`${seen} of ${frames} frames came`);
    }
    // The first round warms up.
    return [
      {
        what: 'replay over SSE from cursor 0, 100,000 events',
        value: median(walls.slice(1)) / 1_000,
        unit: 's',
        target: { atMost: 2 },
        baseline: { what: 'pg-cursor alone, bodies as text', value: median(floors.slice(1)) / 1_000 },
        detail: `median of ${ROUNDS}; ${frames} frames (${(bytes / 2 ** 20).toFixed(0)} MiB) of ${events} stored events; request sent → last byte`,
      },
    ];
  },
};
