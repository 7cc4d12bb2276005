import { connect } from 'node:net';
import { parseFrames, startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

const CUTS = 1_000;
const READERS = 20;

let platform: TestPlatform;
let client: TestClient;
beforeAll(async () => {
  platform = await startPlatform();
  client = new TestClient(platform);
}, 240_000);
afterAll(async () => {
  await platform?.stop();
}, 60_000);

interface Reader {
  readonly sessionId: string;
  readonly seen: { id: number; json: string }[];
  /** What the previews have said about the message that is open. */
  previews: Map<string, string>;
  cuts: number;
}

/** Connects over a bare socket, cuts the connection after a random number of bytes, and keeps the complete frames. */
function readAndCut(reader: Reader): Promise<void> {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(platform.apiUrl);
    const after = reader.seen.at(-1)?.id ?? 0;
    const limit = Math.floor(Math.random() ** 2 * 6_000);
    const socket = connect(Number(port), hostname);
    let bytes = Buffer.alloc(0);
    const done = (): void => {
      socket.destroy();
      clearTimeout(timer);
      reader.cuts++;
      try {
        take(reader, bytes);
        resolve();
      } catch (error) {
        reject(error as Error);
      }
    };
    // A stream that has nothing more to say is cut while it is silent.
    const timer = setTimeout(done, 150);
    socket.on('error', reject);
    socket.on('data', (piece) => {
      bytes = Buffer.concat([bytes, piece]);
      if (bytes.length < limit) return;
      bytes = bytes.subarray(0, limit);
      done();
    });
    socket.write(
      `GET /v1/sessions/${reader.sessionId}/events/stream?event_deltas[]=agent.message HTTP/1.1\r\nhost: x\r\n` +
        `x-api-key: ${platform.apiKey}\r\nlast-event-id: ${after}\r\n\r\n`,
    );
  });
}

/** The frames that arrived whole. HTTP's own chunks are taken apart first; a torn one is dropped with what follows. */
function take(reader: Reader, bytes: Buffer): void {
  const start = bytes.indexOf('\r\n\r\n');
  if (start < 0) return;
  expect(bytes.toString('latin1', 0, 12)).toBe('HTTP/1.1 200');
  const parts: Buffer[] = [];
  for (let at = start + 4; ; ) {
    const line = bytes.indexOf('\r\n', at);
    if (line < 0) break;
    const size = Number.parseInt(bytes.toString('latin1', at, line), 16);
    if (!(size > 0)) break;
    parts.push(bytes.subarray(line + 2, line + 2 + size));
    at = line + 2 + size + 2;
  }
  const { frames } = parseFrames(Buffer.concat(parts).toString());
  for (const frame of frames) {
    if (frame.event === 'event_start') reader.previews = new Map([[(frame.data['event'] as { id: string }).id, '']]);
    if (frame.event === 'event_delta') {
      const id = frame.data['event_id'] as string;
      const before = reader.previews.get(id);
      // A delta belongs to a message whose beginning this connection was told.
      expect(before).toBeDefined();
      reader.previews.set(id, before + (frame.data['delta'] as { content: { text: string } }).content.text);
    }
    if (frame.id === null) continue;
    reader.seen.push({ id: frame.id, json: JSON.stringify(frame.data) });
    const preview = reader.previews.get(frame.data.id ?? '');
    if (frame.event === 'agent.message' && preview !== undefined)
      expect(frame.data.content?.[0]?.text.startsWith(preview)).toBe(true);
  }
  reader.previews.clear();
}

describe('a stream that is cut at random bytes and resumed', () => {
  it(`has every frame once and in order, after ${CUTS} cuts`, async () => {
    const sessions = await Promise.all(Array.from({ length: READERS / 2 }, () => client.session()));
    const readers = Array.from({ length: READERS }, (_, i): Reader => {
      return { sessionId: sessions[i % sessions.length] as string, seen: [], previews: new Map(), cuts: 0 };
    });
    let writing = true;
    const writers = Promise.all(
      sessions.map(async (id) => {
        for (let n = 0; n < 6; n++) {
          const text = n % 2 === 0 ? 'SLOW[25]' : `${'ä😀 '.repeat(200)}${n}`;
          await client.json(`/v1/sessions/${id}/events`, { json: { events: [userMessage(text)] } });
          await client.untilIdle(id, 30_000);
        }
      }),
    ).finally(() => {
      writing = false;
    });
    await Promise.all(
      readers.map(async (reader) => {
        while (writing || reader.cuts < CUTS / READERS) await readAndCut(reader);
      }),
    );
    await writers;
    expect(readers.reduce((sum, reader) => sum + reader.cuts, 0)).toBeGreaterThanOrEqual(CUTS);
    for (const reader of readers) {
      const whole = await client.frames(`/v1/sessions/${reader.sessionId}/events/stream?after=0`, (all) => {
        return all.filter((frame) => frame.event === 'session.status_idle').length === 6;
      });
      const head = whole.at(-1)?.id ?? 0;
      // What the last cut left unread is read to the end.
      while ((reader.seen.at(-1)?.id ?? 0) < head) await readAndCut(reader);
      expect(reader.seen).toEqual(whole.map(({ id, data }) => ({ id, json: JSON.stringify(data) })));
      const stamped = whole.filter(({ data }) => data.processed_at !== null).map(({ data }) => data);
      expect(await client.events(reader.sessionId)).toEqual(stamped);
    }
  }, 120_000);
});
