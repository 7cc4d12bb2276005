import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import {
  exportLine,
  type Session,
  sessionEventResource,
  sessionResourceSchema,
  timelinePage,
} from '@holdfast/contracts';
import { type Frame, startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

const run = promisify(execFile);
const DOCS = readFileSync(fileURLToPath(new URL('../../../docs/api.md', import.meta.url)), 'utf8');

let platform: TestPlatform;
let client: TestClient;
let elsewhere: string;
beforeAll(async () => {
  platform = await startPlatform();
  client = new TestClient(platform);
  elsewhere = await platform.secondWorkspace();
}, 240_000);
afterAll(() => platform?.stop(), 60_000);

const replay = (id: string, after: number | string = 0): Promise<Frame[]> =>
  client.frames(
    `/v1/sessions/${id}/events/stream?after=${after}`,
    (all) => all.at(-1)?.event === 'session.status_idle',
  );
const send = (id: string, ...events: object[]) => client.json(`/v1/sessions/${id}/events`, { json: { events } });
function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
async function failure(path: string, options = {}): Promise<{ status: number; code: string }> {
  const response = await client.api(path, options);
  const { error } = (await response.json()) as { error: { details: { error_code: string } } };
  return { status: response.status, code: error.details.error_code };
}
/** A session that talked and ran a tool; its events in the log's order. */
async function worked(): Promise<string> {
  const id = await client.session();
  await send(id, userMessage('one RUN[echo hello]'), userMessage('two'));
  await client.untilIdle(id, 30_000);
  return id;
}

describe('an export', () => {
  it('is what the stream replays, as a chain that ends with its count and head', async () => {
    const id = await worked();
    const response = await client.api(`/v1/sessions/${id}/events/export`);
    expect(response.headers.get('content-type')).toMatch(/^application\/x-ndjson/);
    expect(response.headers.get('content-disposition')).toBe(`attachment; filename="${id}.ndjson"`);
    const lines = (await response.text()).trimEnd().split('\n');
    const parsed = lines.map((line) => exportLine.parse(JSON.parse(line)));
    const frames = await replay(id);
    expect(parsed.flatMap((line) => (line.type === 'event' ? [[line.version, line.event]] : []))).toEqual(
      frames.map((frame) => [frame.id, frame.data]),
    );
    expect(parsed.at(-1)).toMatchObject({ type: 'end', events: frames.length, head_hash: parsed.at(-2)?.hash });
    let hash = '';
    for (const line of lines) {
      const body = line.slice(0, line.lastIndexOf(',"hash":"'));
      hash = createHash('sha256').update(`${hash}${body}}`).digest('hex');
      expect(line.endsWith(`"${hash}"}`)).toBe(true);
    }
  });

  it('is verified by the command of the docs, which sees whatever was cut or changed', async () => {
    const id = await worked();
    const [, command = ''] = /^```sh verify-export\n(.*?)^```$/ms.exec(DOCS) ?? [];
    const verify = (text: string) =>
      run('bash', ['-o', 'pipefail', '-c', command.replace(/^curl [^|]*/, 'printf %s "$TEXT" ')], {
        env: { ...process.env, TEXT: text },
      });
    const whole = await run('bash', ['-o', 'pipefail', '-c', command], {
      env: { ...process.env, URL: platform.apiUrl, KEY: platform.apiKey, ID: id },
    });
    const text = await (await client.api(`/v1/sessions/${id}/events/export`)).text();
    const lines = text.split('\n');
    const end = JSON.parse(lines.at(-2) ?? '') as { events: number; head_hash: string };
    expect(whole.stdout).toBe(`${end.events} events, head ${end.head_hash}\n`);
    expect((await verify(text)).stdout).toBe(whole.stdout);
    const damaged = [
      lines.slice(0, -2).join('\n'),
      text.slice(0, text.length / 2),
      lines.filter((_, n) => n !== 3).join('\n'),
      text.replace('hello', 'hullo'),
      [lines[0], lines[2], lines[1], ...lines.slice(3)].join('\n'),
      '',
    ];
    for (const one of damaged) await expect(verify(one)).rejects.toMatchObject({ code: 1 });
  });

  it('of any length is sent as it is taken: a client that stops reading holds the server’s memory small', async () => {
    const id = await client.session();
    // 300 messages of 60 KB each wait in a session: 18 MB, more than the sockets' buffers take.
    const text = 'x'.repeat(60_000);
    await send(id, userMessage('SLOW[200]'));
    for (let n = 0; n < 300; n += 10)
      await send(id, ...Array.from({ length: 10 }, () => userMessage(randomBytes(8).toString('hex') + text)));
    const memory = async () => {
      const status = await client.json<{ services: { service: string; memory_bytes: number }[] }>('/v1/x/status');
      return status.services.find(({ service }) => service === 'gateway-api')?.memory_bytes ?? 0;
    };
    const before = await memory();
    const readers = await Promise.all(
      Array.from({ length: 20 }, () => {
        const asked = request(`${platform.apiUrl}/v1/sessions/${id}/events/export`, {
          headers: { 'x-api-key': platform.apiKey },
        });
        asked.end();
        return new Promise<import('node:http').IncomingMessage>((resolve, reject) => {
          asked.on('error', reject);
          asked.on('response', resolve);
        });
      }),
    );
    await sleep(3_000);
    // 20 whole exports would be 360 MB.
    expect((await memory()) - before).toBeLessThan(200 * 2 ** 20);
    const [first, second, ...others] = readers;
    for (const other of others) other.destroy();
    let bytes = 0;
    let last = '';
    for await (const piece of first as AsyncIterable<Buffer>) {
      bytes += piece.length;
      last = (last + piece.toString()).slice(-400);
    }
    expect(bytes).toBeGreaterThan(18e6);
    expect(last).toMatch(/"type":"end","events":\d+.*\}\n$/);
    await client.json(`/v1/sessions/${id}/events`, { json: { events: [{ type: 'user.interrupt' }] } });
    // A service that leaves waits for no such reader, who sees that the export is cut.
    const at = performance.now();
    const gateway = platform.pid('gateway-api');
    process.kill(gateway, 'SIGTERM');
    const cut = (async () => {
      for await (const _piece of second as AsyncIterable<Buffer>);
    })();
    await expect(cut).rejects.toThrow();
    while (isAlive(gateway)) await sleep(50);
    expect(performance.now() - at).toBeLessThan(10_000);
    for (const until = Date.now() + 20_000; Date.now() < until; await sleep(100)) {
      const ready = await client.api('/readyz').catch(() => null);
      if (ready?.status === 200) break;
    }
  });

  it('of a session that is not there, or another workspace’s, is a 404', async () => {
    const id = await worked();
    for (const [path, headers] of [
      ['/v1/sessions/sesn_none/events/export', {}],
      [`/v1/sessions/${id}/events/export`, { 'x-api-key': elsewhere }],
    ] as const)
      expect(await failure(path, { headers })).toEqual({ status: 404, code: 'session.not-found' });
  });
});

describe('a session at a point of its log', () => {
  it('is what it was then, by version and by event', async () => {
    const id = await client.session();
    const before = await client.json<Session>(`/v1/sessions/${id}`);
    await client.json(`/v1/sessions/${id}`, { json: { title: 'later', metadata: { k: 'v' } } });
    await send(id, userMessage('one RUN[echo hello]'), userMessage('two'));
    await client.untilIdle(id, 30_000);
    const now = await client.json<Session>(`/v1/sessions/${id}`);
    const at = async (place: number | string) =>
      sessionResourceSchema.parse(await client.json(`/v1/sessions/${id}?at=${place}`));
    expect(await at(1)).toEqual({ ...before, stats: { active_seconds: 0, duration_seconds: 0 } });
    expect(await at(2)).toMatchObject({ title: 'later', metadata: { k: 'v' }, usage: { input_tokens: 0 } });
    const frames = await replay(id);
    const head = frames.at(-1)?.id ?? 0;
    expect(await at(head)).toEqual({ ...now, stats: { ...now.stats, duration_seconds: expect.any(Number) } });
    let tokens = 0;
    for (const frame of frames) {
      const then = await at(frame.id ?? 0);
      if (frame.event === 'span.model_request_end')
        tokens += (frame.data['model_usage'] as { input_tokens: number }).input_tokens;
      expect(then.usage.input_tokens).toBe(tokens);
      if (frame.event === 'session.status_running') expect(then.status).toBe('running');
    }
    expect(tokens).toBeGreaterThan(0);
    // A message stands where the agent took it, not where it was accepted.
    const second = frames.filter(({ event, data }) => event === 'user.message' && data.content?.[0]?.text === 'two');
    const [accepted, stamped] = second;
    expect(stamped?.data).toMatchObject({ id: accepted?.data.id, processed_at: expect.any(String) });
    expect(await at(stamped?.data.id ?? '')).toEqual(await at(stamped?.id ?? 0));
    expect(await at(stamped?.data.id ?? '')).toMatchObject({ status: 'running' });
    expect(await at(accepted?.id ?? 0)).toMatchObject({ status: 'idle' });
  });

  it('is refused where there is no such point, and does not exist for others', async () => {
    const [id, other] = [await worked(), await worked()];
    const head = (await replay(id)).at(-1)?.id ?? 0;
    const [foreign] = await client.events(other);
    for (const place of ['0', String(head + 1), '-1', 'x', '99999999999'])
      expect(await failure(`/v1/sessions/${id}?at=${place}`)).toEqual({
        status: 400,
        code: 'session.no-such-version',
      });
    for (const place of ['sevt_none', foreign?.id ?? ''])
      expect(await failure(`/v1/sessions/${id}?at=${place}`)).toEqual({ status: 400, code: 'event.not-in-session' });
    expect(await failure(`/v1/sessions/${id}?at=1`, { headers: { 'x-api-key': elsewhere } })).toMatchObject({
      status: 404,
    });
    await client.api(`/v1/sessions/${id}`, { method: 'DELETE' });
    expect(await failure(`/v1/sessions/${id}?at=1`)).toEqual({ status: 404, code: 'session.not-found' });
  });
});

describe('a fork', () => {
  interface Page {
    readonly data: Frame['data'][];
    readonly next_page: string | null;
  }
  const fork = async (id: string, json: object = {}): Promise<Session> =>
    sessionResourceSchema.parse(await client.json(`/v1/sessions/${id}/fork`, { json }));
  /** What a session's stream replays until it went idle so many times. */
  async function replayAll(
    id: string,
    idles: number,
    after: number | string = 0,
    headers: Record<string, string> = {},
  ): Promise<Frame[]> {
    const ends = (all: readonly Frame[]) =>
      all.flatMap(({ event }, n) => (event === 'session.status_idle' ? [n + 1] : []));
    const path = `/v1/sessions/${id}/events/stream?after=${after}`;
    const all = await client.frames(path, (seen) => ends(seen).length >= idles, headers);
    return all.slice(0, ends(all)[idles - 1]);
  }
  async function pages(id: string, query: string, after = ''): Promise<Frame['data'][]> {
    const all: Frame['data'][] = [];
    for (let page: string | null = after; page !== null; ) {
      const answer: Page = await client.json(
        `/v1/sessions/${id}/events?${query}${page === '' ? '' : `&page=${encodeURIComponent(page)}`}`,
      );
      all.push(...answer.data);
      page = answer.next_page;
    }
    return all;
  }
  /** As the list shows what was replayed: each message once, at its stamp. */
  const listed = (frames: readonly Frame[]) =>
    frames.map(({ data }) => data).filter(({ processed_at }) => processed_at !== null);

  let parent: string;
  let child: Session;
  let shared: Frame[];
  let frames: Frame[];
  beforeAll(async () => {
    parent = await client.session();
    await send(parent, userMessage('one RUN[echo hello]'));
    await client.untilIdle(parent, 30_000);
    await send(parent, userMessage('two'));
    await client.untilIdle(parent, 30_000);
    shared = await replayAll(parent, 1);
    child = await fork(parent, { at_version: shared.at(-1)?.id, initial_events: [userMessage('instead')] });
    await client.untilIdle(child.id, 30_000);
    frames = await replayAll(child.id, 3);
  }, 60_000);

  it('says where it comes from, and is told as the change that it is', () => {
    const last = shared.at(-1);
    const from = {
      session_id: parent,
      root_session_id: parent,
      event_id: last?.data.id,
      version: last?.id,
      checkpoint: { id: expect.stringMatching(/^ckpt_/), version: expect.any(Number) },
      missing_tool_use_ids: [],
    };
    expect(child).toMatchObject({ status: 'running', forked_from: from, usage: { input_tokens: 0 } });
    expect(frames.slice(0, shared.length)).toEqual(shared);
    const [first, second] = frames.slice(shared.length);
    expect(first).toMatchObject({
      id: (last?.id ?? 0) + 1,
      event: 'session.updated',
      data: { forked_from: from, x_dropped_event_ids: [], agent: child.agent, title: null, metadata: {} },
    });
    expect(second?.event).toBe('session.status_idle');
    for (const { data } of frames) sessionEventResource.parse(data);
  });

  it('is streamed over the seam from every cursor, below it, at it and above it, by version and by event', async () => {
    const ids = frames.map(({ id }) => id ?? 0);
    const idlesAfter = (version: number) =>
      frames.filter(({ id, event }) => (id ?? 0) > version && event === 'session.status_idle').length;
    for (let version = 0; version < (ids.at(-1) ?? 0); version++) {
      const rest = frames.filter(({ id }) => (id ?? 0) > version);
      expect(await replayAll(child.id, idlesAfter(version), version)).toEqual(rest);
    }
    for (const frame of frames.slice(0, -1).filter(({ event }) => event !== 'user.message')) {
      const rest = frames.filter(({ id }) => (id ?? 0) > (frame.id ?? 0));
      const header = { 'last-event-id': frame.data.id ?? '' };
      expect(await replayAll(child.id, idlesAfter(frame.id ?? 0), 0, header)).toEqual(rest);
    }
    const later = (await replayAll(parent, 2)).slice(shared.length).map(({ data }) => data.id ?? '');
    for (const cursor of [...later, String((ids.at(-1) ?? 0) + 1)])
      expect((await failure(`/v1/sessions/${child.id}/events/stream?after=${cursor}`)).status).toBe(400);
  });

  it('is streamed live to whoever follows it, and neither sees what the other does', async () => {
    const following = replayAll(child.id, 4);
    const besides = replayAll(parent, 3);
    await send(child.id, userMessage('live'));
    const all = await following;
    expect(all.slice(0, frames.length)).toEqual(frames);
    expect(all.at(-2)?.data.content?.[0]?.text ?? '').not.toBe('two');
    await send(parent, userMessage('besides'));
    expect(JSON.stringify((await besides).slice(shared.length))).not.toContain('instead');
    expect(JSON.stringify(all)).not.toContain('besides');
    frames = all;
  });

  it('is listed over the seam, page by page in both orders, by type, by time and after an event', async () => {
    const whole = listed(frames);
    for (const limit of [1, 3, 7, 1000]) {
      expect(await pages(child.id, `limit=${limit}`)).toEqual(whole);
      expect(await pages(child.id, `limit=${limit}&order=desc`)).toEqual([...whole].reverse());
    }
    for (const type of ['user.message', 'agent.tool_use', 'session.updated', 'session.status_idle'])
      expect(await pages(child.id, `limit=2&types[]=${type}`)).toEqual(whole.filter((event) => event.type === type));
    const at = shared.at(-1)?.data.processed_at ?? '';
    expect(await pages(child.id, `limit=5&created_at[gt]=${at}`)).toEqual(
      whole.filter(({ processed_at }) => Date.parse(processed_at ?? '') > Date.parse(at)),
    );
    for (const place of [2, shared.length - 1, shared.length, frames.length - 2]) {
      const frame = frames[place];
      if (frame?.event === 'user.message') continue;
      expect(await pages(child.id, 'limit=4', frame?.data.id)).toEqual(
        listed(frames.filter(({ id }) => (id ?? 0) > (frame?.id ?? 0))),
      );
    }
  });

  it('is exported, shown as it was, and has its timeline, over the seam', async () => {
    const text = await (await client.api(`/v1/sessions/${child.id}/events/export`)).text();
    const lines = text
      .trimEnd()
      .split('\n')
      .map((line) => exportLine.parse(JSON.parse(line)));
    expect(lines.flatMap((line) => (line.type === 'event' ? [[line.version, line.event]] : []))).toEqual(
      frames.map(({ id, data }) => [id, data]),
    );
    const at = async (id: string, place: number | string) =>
      sessionResourceSchema.parse(await client.json(`/v1/sessions/${id}?at=${place}`));
    for (const frame of shared)
      expect(await at(child.id, frame.id ?? 0)).toEqual({ ...(await at(parent, frame.id ?? 0)), id: child.id });
    const message = shared.find(({ event }) => event === 'user.message')?.data.id ?? '';
    expect(await at(child.id, message)).toEqual({ ...(await at(parent, message)), id: child.id });
    expect(await at(child.id, (shared.at(-1)?.id ?? 0) + 1)).toMatchObject({
      forked_from: child.forked_from,
      usage: { input_tokens: 0 },
    });
    const now = await client.json<Session>(`/v1/sessions/${child.id}`);
    expect(await at(child.id, frames.at(-1)?.id ?? 0)).toEqual({ ...now, stats: expect.anything() });
    const timeline = async (id: string) =>
      timelinePage.parse(await client.json(`/v1/sessions/${id}/x/timeline?limit=1000`)).data;
    const own = await timeline(child.id);
    expect(own.map(({ version }) => version)).toEqual(own.map((_, n) => n + 1));
    expect(own.find(({ type }) => type === 'session.forked')?.metadata).toMatchObject({ actor: { type: 'api_key' } });
    expect((await timeline(parent)).find(({ type }) => type === 'session.fork_created')).toMatchObject({
      data: { fork_session_id: child.id, version: shared.at(-1)?.id },
      metadata: { actor: { type: 'api_key' } },
    });
  });

  it('begins where the request says: a message where the agent took it, else by version, else now', async () => {
    const message = frames.find(({ event }) => event === 'user.message')?.data.id ?? '';
    const stamped = frames.filter(({ data }) => data.id === message)[1]?.id;
    const byEvent = await fork(parent, { at_event_id: message });
    expect(byEvent.forked_from).toMatchObject({ session_id: parent, event_id: message, version: stamped });
    const now = await client.json<Session>(`/v1/sessions/${parent}/fork`, { method: 'POST' });
    expect(now).toMatchObject({ agent: child.agent, title: null });
    const made = await client.json<Session>('/v1/sessions', {
      json: {
        agent: child.agent.id,
        environment_id: child.environment_id,
        title: 'made',
        fork_from: { session_id: child.id, at_version: stamped },
      },
    });
    expect(made).toMatchObject({ title: 'made', forked_from: { session_id: child.id, version: stamped } });
  });

  it('is refused with what is wrong', async () => {
    const [first] = frames;
    const other = await client.session();
    const [foreign] = await client.events(await worked());
    const place = { at_event_id: first?.data.id, at_version: 1 };
    for (const [json, status, code] of [
      [place, 400, 'request.invalid'],
      [{ at_version: 10_000 }, 400, 'session.no-such-version'],
      [{ at_event_id: foreign?.id }, 400, 'event.not-in-session'],
      [{ initial_events: [{ type: 'user.interrupt' }] }, 400, 'request.invalid'],
      [{ metadata: { k: 1 } }, 400, 'invalid_metadata'],
      [{ x: 1 }, 400, 'request.invalid'],
      [{ agent: 'agent_none' }, 404, 'agent.not-found'],
      [{ environment_id: 'env_none' }, 404, 'environment.not-found'],
    ] as const)
      expect([json, await failure(`/v1/sessions/${parent}/fork`, { json })]).toEqual([json, { status, code }]);
    for (const [path, headers] of [
      ['/v1/sessions/sesn_none/fork', {}],
      [`/v1/sessions/${parent}/fork`, { 'x-api-key': elsewhere }],
    ] as const)
      expect(await failure(path, { json: {}, headers })).toEqual({ status: 404, code: 'session.not-found' });
    const create = { agent: child.agent.id, environment_id: child.environment_id, x_context_key: 'k' };
    const fork_from = { session_id: other };
    expect(await failure('/v1/sessions', { json: { ...create, fork_from } })).toMatchObject({ status: 400 });
  });

  it('is made once for one Idempotency-Key', async () => {
    const post = () =>
      client.json<Session>(`/v1/sessions/${parent}/fork`, {
        json: {},
        headers: { 'idempotency-key': `once-${parent}` },
      });
    const both = await Promise.all([post(), post()]);
    expect(both[0].id).toBe(both[1].id);
    expect((await post()).id).toBe(both[0].id);
  });

  it('is found with its family, by any of it and by nobody else, and outlives those that it came from', async () => {
    const root = await worked();
    const first = await fork(root);
    const second = await fork(first.id);
    const beside = await fork(root, { at_version: 3 });
    const family = async (of: string, headers = {}) => {
      const all: string[] = [];
      for (let page: string | null = ''; page !== null; ) {
        const answer: { data: Session[]; next_page: string | null } = await client.json(
          `/v1/sessions?x_family=${of}&include_archived=true&order=asc&limit=2${page === '' ? '' : `&page=${page}`}`,
          { headers },
        );
        all.push(...answer.data.map(({ id }) => id));
        page = answer.next_page;
      }
      return all;
    };
    const everybody = [root, first.id, second.id, beside.id];
    for (const of of everybody) expect(await family(of)).toEqual(everybody);
    expect(await family(root, { 'x-api-key': elsewhere })).toEqual([]);
    expect(await family('sesn_none')).toEqual([]);
    const before = await replayAll(second.id, 3);
    const list = await pages(second.id, 'limit=4');
    const exported = await (await client.api(`/v1/sessions/${second.id}/events/export`)).text();
    for (const id of [root, first.id]) {
      expect((await client.api(`/v1/sessions/${id}`, { method: 'DELETE' })).status).toBe(200);
      expect((await failure(`/v1/sessions/${id}/events/export`)).status).toBe(404);
      expect((await failure(`/v1/sessions/${id}/fork`, { json: {} })).status).toBe(404);
    }
    expect(await replayAll(second.id, 3)).toEqual(before);
    expect(await pages(second.id, 'limit=4')).toEqual(list);
    expect(await (await client.api(`/v1/sessions/${second.id}/events/export`)).text()).toBe(exported);
    expect(await family(beside.id)).toEqual([second.id, beside.id]);
    await send(second.id, userMessage('still here'));
    await client.untilIdle(second.id, 30_000);
    expect(await platform.maintain('check')).toMatch(/^the log is whole/m);
  });
});
