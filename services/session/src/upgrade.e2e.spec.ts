import { execFileSync } from 'node:child_process';
import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import Anthropic from '@anthropic-ai/sdk';
import {
  expectSound,
  freePort,
  ofType,
  type Release,
  releaseWith,
  sandboxesOf,
  startPlatform,
  TestClient,
  type TestPlatform,
  textOf,
  userMessage,
} from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

const SESSIONS = 20;
const TYPE = 'session.status_running';
/** The next release: an event that every turn begins with has a second version, which says something new. */
const NEXT = [
  {
    file: 'libs/contracts/dist/session/session.events.js',
    from: `type: '${TYPE}',\n    schemaVersion,`,
    to: `type: '${TYPE}',\n    schemaVersion: 2,`,
  },
  {
    file: 'libs/contracts/dist/event-versions.js',
    from: 'const STEPS = [];',
    to: `const STEPS = [{
      type: '${TYPE}',
      fromVersion: 1,
      upcast: (data) => ({ ...data, release: 'unknown' }),
      downcast: ({ release, ...data }) => data,
    }];`,
  },
  {
    file: 'services/session/dist/session/session.decider.js',
    from: `type: '${TYPE}', data: {}`,
    to: `type: '${TYPE}', data: { release: 'next' }`,
  },
];

/** The one address that clients know. What it has connected stays there; what comes goes where it points now. */
class Balancer {
  readonly #server: Server;
  readonly url: string;

  private constructor(server: Server, url: string) {
    this.#server = server;
    this.url = url;
  }

  static async start(target: { url: string }): Promise<Balancer> {
    const server = createServer((client) => {
      const { hostname, port } = new URL(target.url);
      const upstream = connect(Number(port), hostname);
      for (const socket of [client, upstream])
        socket.on('error', () => undefined).on('close', () => [client, upstream].map((each) => each.destroy()));
      client.pipe(upstream).pipe(client);
    });
    const port = await freePort();
    await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
    return new Balancer(server, `http://127.0.0.1:${port}`);
  }

  stop(): void {
    this.#server.close();
  }
}

let platform: TestPlatform;
let next: Release;
let balancer: Balancer;
let client: TestClient;
const gateway = { url: '' };
const ended = new AbortController();
beforeAll(async () => {
  platform = await startPlatform({ SESSION_REPLICAS: '2' });
  next = releaseWith(NEXT);
  gateway.url = platform.apiUrl;
  balancer = await Balancer.start(gateway);
  client = new TestClient({ apiUrl: balancer.url, apiKey: platform.apiKey });
}, 240_000);
afterAll(async () => {
  ended.abort();
  balancer?.stop();
  await platform?.stop();
  await next?.remove();
}, 60_000);

/** How many events of the type are stored, by version. */
async function stored(): Promise<Record<string, unknown>> {
  const rows = await platform.query(
    'select schema_version, count(*)::integer as n from events where type = $1 group by 1',
    [TYPE],
  );
  return Object.fromEntries(rows.map((row) => [String(row['schema_version']), row['n']]));
}

/** What a client asks for: quick calls, calls and answers that outlast the replacement of a service. */
function request(n: number, mark: string): string {
  if (n % 3 === 1) return `SLOW[30] ${mark}`;
  return `RUN[sleep ${n % 3 === 0 ? 0.2 : 3}; echo ${mark} >> /workspace/lines.txt] ${mark}`;
}

describe('a rolling upgrade', () => {
  it(`loses and doubles nothing in ${SESSIONS} busy sessions, and no client sees more than a reconnect`, async () => {
    const ids = await Promise.all(Array.from({ length: SESSIONS }, () => client.session()));
    // As it comes: whatever the SDK does not get over by itself is thrown here.
    const { sessions } = new Anthropic({ apiKey: platform.apiKey, baseURL: balancer.url }).beta;
    const send = (id: string, text: string) => sessions.events.send(id, { events: [userMessage(text)] });
    let busy = true;
    const clients = ids.map(async (id, s) => {
      const marks: string[] = [];
      for (let n = 0; busy; n++) {
        const mark = `s${s}n${n}`;
        await send(id, request(s + n, mark));
        marks.push(mark);
        await sleep(2_000 + Math.random() * 3_000);
      }
      return marks;
    });
    const opened: (number | null)[][] = ids.map(() => []);
    const readers = ids.map((id, s) =>
      client.follow(id, ended.signal, { opened: (status) => opened[s]?.push(status) }),
    );
    await sleep(6_000);

    const drainMs: Record<string, number> = {};
    drainMs['gateway-api'] = await platform.replace('gateway-api', next.dir, (url) => {
      gateway.url = url;
    });
    await sleep(1_000);
    const runners = sandboxesOf(platform).map(({ init }) => init);
    drainMs['sandbox'] = await platform.replace('sandbox', next.dir);
    await sleep(1_000);
    drainMs['session'] = await platform.replace('session', next.dir);
    // Long enough that the new one would write the new version if it did not know of the old one.
    await sleep(7_000);
    expect(Object.keys(await stored())).toEqual(['1']);
    drainMs['session-2'] = await platform.replace('session-2', next.dir);
    for (const deadline = Date.now() + 15_000; (await stored())['2'] === undefined && Date.now() < deadline; )
      await sleep(500);
    busy = false;
    const sent = await Promise.all(clients);
    expect(Object.keys(await stored())).toEqual(['1', '2']);
    // Each left by itself, within the time that a container is given.
    for (const ms of Object.values(drainMs)) expect(ms).toBeLessThan(10_000);
    for (const name of Object.keys(drainMs)) expect(platform.log(name)).not.toMatch(/shutdown failed|unhandled/);
    // Sandboxes went on under the next service.
    const left = new Set(sandboxesOf(platform).map(({ init }) => init));
    expect([runners.length, runners.filter((init) => !left.has(init))]).toEqual([SESSIONS, []]);

    let takeovers = 0;
    for (const [s, id] of ids.entries()) {
      const marks = sent[s] ?? [];
      expectSound(await client.untilIdle(id, 60_000));
      await send(id, 'RUN[cat /workspace/lines.txt]');
      await sleep(100);
      const events = await client.untilIdle(id, 30_000);
      const messages = ofType(events, 'user.message');
      expect(messages.map((event) => textOf(event).split(' ').at(-1))).toEqual([...marks, '/workspace/lines.txt]']);
      expect(messages.filter((event) => event.processed_at === null)).toEqual([]);
      // Every call ran once, also those that were under way when what had asked for them went.
      const asked = marks.filter((_, n) => (s + n) % 3 !== 1);
      expect(
        textOf(ofType(events, 'agent.tool_result').at(-1))
          .split('\n')
          .filter((line) => line.startsWith('s')),
      ).toEqual(asked);
      expect(ofType(events, 'agent.tool_result').filter((event) => event['is_error'] === true)).toEqual([]);

      // Who reads has the new version of everything, however it is stored.
      const { data } = await client.json<{ data: { type: string; schema_version: number; data: object }[] }>(
        `/v1/sessions/${id}/x/timeline?limit=1000`,
      );
      const running = data.filter(({ type }) => type === TYPE);
      expect(new Set(running.map(({ schema_version }) => schema_version))).toEqual(new Set([2]));
      expect(running[0]?.data).toEqual({ release: 'unknown' });
      takeovers += data.filter(
        ({ type, data: of }) => type === 'session.turn_started' && 'takeover' in of && of.takeover,
      ).length;
    }
    expect(takeovers).toBeGreaterThan(0);

    // What was read in pieces is what the log shows, and nobody was turned away between them.
    const whole = await Promise.all(
      ids.map(async (id) => {
        const idles = ofType(await client.events(id), 'session.status_idle').length;
        return client.frames(
          `/v1/sessions/${id}/events/stream?after=0`,
          (all) => all.filter((frame) => frame.event === 'session.status_idle').length === idles,
        );
      }),
    );
    await sleep(2_000);
    ended.abort();
    for (const [s, seen] of (await Promise.all(readers)).entries())
      expect(seen).toEqual(whole[s]?.map(({ id, data }) => ({ id, json: JSON.stringify(data) })));
    // A request on a connection that was kept alive can cross its end: then it has no answer, and is sent again.
    expect(opened.map((statuses) => statuses.filter((status) => status !== null))).toEqual(ids.map(() => [200, 200]));

    const check = execFileSync(process.execPath, [join(next.dir, 'services/session/dist/maintain.js'), 'check'], {
      env: { DATABASE_URL: platform.databaseUrl },
      encoding: 'utf8',
    });
    expect(check).toContain('the log is whole');
  }, 180_000);
});
