import { startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import pg from 'pg';

const RUNS = 2_000;
const SEED = 20_261_124;

let platform: TestPlatform;
let client: TestClient;
let database: pg.Pool;
let ids: Record<'agent' | 'environment' | 'session', string>;

beforeAll(async () => {
  platform = await startPlatform();
  client = new TestClient(platform);
  database = new pg.Pool({ connectionString: platform.databaseUrl, max: 1 });
  const session = await client.session();
  const { agent, environment_id } = await client.json<{ agent: { id: string }; environment_id: string }>(
    `/v1/sessions/${session}`,
  );
  ids = { agent: agent.id, environment: environment_id, session };
}, 240_000);
afterAll(async () => {
  await database?.end();
  await platform?.stop();
}, 60_000);

/** Everything that a request could have stored. */
async function stored(): Promise<unknown> {
  const tables = ['events', 'streams', 'agents', 'agent_versions', 'environments', 'sessions', 'api_keys'];
  const counts = await Promise.all(
    tables.map(async (table) => {
      const { rows } = await database.query<{ hash: string }>(
        `select md5(coalesce(string_agg(t::text, '|' order by t::text), '')) as hash from ${table} t`,
      );
      return [table, rows[0]?.hash];
    }),
  );
  return Object.fromEntries(counts);
}

/** Values that no field takes, or that break careless code. */
const nasty: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom<unknown>(
    Number.MAX_VALUE,
    -1,
    0.5,
    true,
    [],
    [[[[]]]],
    {},
    { __proto__: null },
    JSON.parse('{"__proto__": {"polluted": true}}'),
    JSON.parse('{"constructor": {"prototype": {"polluted": true}}}'),
    'nul\u0000inside',
    'lone\ud800surrogate',
    'x'.repeat(100_001),
    { type: 'no_such_type' },
  ),
  fc.array(fc.integer(), { minLength: 1, maxLength: 300 }),
  fc.integer({ min: 1, max: 3 }).map((size) => deep(size * 60)),
);
function deep(levels: number): unknown {
  let value: unknown = 1;
  for (let i = 0; i < levels; i++) value = i % 2 === 0 ? [value] : { a: value };
  return value;
}

const badId = fc.oneof(
  fc.constantFrom(
    'sesn_none',
    'agent_none',
    '..%2f..%2fetc',
    '%00',
    "'; drop table events; --",
    '__proto__',
    '💥',
    'null',
  ),
  fc.string({ minLength: 1, maxLength: 40 }).filter((text) => !/^[./]+$/.test(text)),
  // Well-formed and of nobody here.
  fc.constantFrom('sesn', 'agent', 'env', 'sevt', 'apikey').map((kind) => `${kind}_01a20b71210f76a88f89cdf7f308ffff`),
);

interface Bad {
  readonly method: string;
  readonly path: string;
  readonly body?: string;
  readonly headers?: Record<string, string>;
}

/** Fields that a valid body may have, so that one of them can be spoilt. */
const bodies: readonly (readonly [
  path: (own: typeof ids) => string,
  valid: (own: typeof ids) => Record<string, unknown>,
])[] = [
  [() => '/v1/agents', () => ({ name: 'a', model: 'demo', tools: [], system: 's', metadata: {}, description: 'd' })],
  [({ agent }) => `/v1/agents/${agent}`, () => ({ version: 1, name: 'a', model: 'demo', tools: [], metadata: {} })],
  [() => '/v1/environments', () => ({ name: 'e', config: { type: 'cloud' }, metadata: {}, description: 'd' })],
  [
    () => '/v1/sessions',
    (own) => ({ agent: own.agent, environment_id: own.environment, initial_events: [], resources: [] }),
  ],
  [() => '/api/sessions', (own) => ({ agent_id: own.agent, prompt: 'p', environment_id: own.environment })],
  [({ session }) => `/v1/sessions/${session}`, () => ({ title: 't', metadata: {} })],
  [({ session }) => `/v1/sessions/${session}/events`, () => ({ events: [userMessage('x')] })],
  [() => '/v1/x/api_keys', () => ({ name: 'k' })],
];

const spoiltBody: fc.Arbitrary<Bad> = fc
  .record({ at: fc.nat(bodies.length - 1), field: fc.nat(), value: nasty, extra: fc.boolean() })
  .map(({ at, field, value, extra }) => {
    const [path, valid] = bodies[at] as (typeof bodies)[number];
    const body = valid(ids);
    const names = Object.keys(body);
    const name = names[field % names.length] ?? '';
    // An empty list or object, or a number or text, can be right for a field: then an unknown field makes it wrong.
    if (extra || isHarmless(value)) body[`unknown_${field}`] = value;
    if (!isHarmless(value)) body[name] = name === 'metadata' ? { key: value } : value;
    return { method: 'POST', path: path(ids), body: JSON.stringify(body) };
  });
function isHarmless(value: unknown): boolean {
  const text = JSON.stringify(value);
  return (
    text === '[]' || text === '{}' || typeof value === 'number' || (typeof value === 'string' && value.length > 1_000)
  );
}

const brokenText: fc.Arbitrary<Bad> = fc
  .record({
    at: fc.nat(bodies.length - 1),
    body: fc.constantFrom(
      '{',
      'null',
      '[]',
      '"text"',
      '{"a":}',
      '\u0000',
      'a=b',
      '{"a":1}{"b":2}',
      '['.repeat(50_000),
      `{"name":"${'\\ud800'}"}`,
    ),
    type: fc.constantFrom(
      'application/json',
      'text/plain',
      'multipart/form-data',
      'application/json; charset=utf-16',
      '',
    ),
  })
  .map(({ at, body, type }) => ({
    method: 'POST',
    path: (bodies[at] as (typeof bodies)[number])[0](ids),
    body,
    headers: { 'content-type': type },
  }));

const wrongPlace: fc.Arbitrary<Bad> = fc
  .record({
    kind: fc.constantFrom('agents', 'environments', 'sessions', 'models', 'nothing'),
    id: badId,
    rest: fc.constantFrom('', '/events', '/events/stream?after=0', '/archive', '/versions', '/x/timeline', '/unknown'),
    method: fc.constantFrom('GET', 'POST', 'DELETE', 'PUT', 'PATCH'),
  })
  .map(({ kind, id, rest, method }) => ({
    method,
    path: `/v1/${kind}/${/^[\w%.;' -]+$/.test(id) ? encodeURI(id).replaceAll('%25', '%') : encodeURIComponent(id.toWellFormed())}${rest}`,
    ...(method === 'POST' ? { body: '{}' } : {}),
  }));

const badQuery: fc.Arbitrary<Bad> = fc
  .record({
    at: fc.constantFrom(
      '/v1/agents?',
      '/v1/environments?',
      '/v1/sessions?',
      'events?',
      'x/timeline?',
      'events/stream?',
    ),
    query: fc.constantFrom(
      'limit=0',
      'limit=-1',
      'limit=1.5',
      'limit=NaN',
      'limit=100000',
      'limit=1&limit=2',
      'page=garbage',
      'page=eyJhIjoxfQ',
      `page=${'A'.repeat(5_000)}`,
      'page=sevt_none',
    ),
  })
  .map(({ at, query }) => {
    const path = at.startsWith('/') ? at : `/v1/sessions/${ids.session}/${at}`;
    if (at === 'events/stream?') {
      const cursor = query.startsWith('limit=') ? '99999999' : query.slice('page='.length);
      return { method: 'GET', path: `${path}after=${cursor}` };
    }
    return { method: 'GET', path: at === 'x/timeline?' && query.startsWith('page') ? `${path}after=-5` : path + query };
  });

const badHead: fc.Arbitrary<Bad> = fc.constantFrom<Bad>(
  { method: 'GET', path: '/v1/agents', headers: { 'x-api-key': '' } },
  { method: 'GET', path: '/v1/agents', headers: { 'x-api-key': 'hf_wrong' } },
  { method: 'GET', path: '/v1/agents', headers: { 'x-api-key': 'x'.repeat(7_000) } },
  { method: 'GET', path: '/v1/agents', headers: { authorization: 'Bearer', 'x-api-key': '' } },
  { method: 'POST', path: '/v1/agents', body: '{}', headers: { 'idempotency-key': 'k'.repeat(300) } },
  { method: 'POST', path: '/v1/x/dashboard_sessions', body: '{"link_token":"hfl_none"}', headers: { 'x-api-key': '' } },
);

describe('bad requests', () => {
  it(`are refused with the envelope, ${RUNS} of them; nothing is stored and nothing falls over`, async () => {
    const services = ['gateway-api', 'session', 'sandbox'].map((name) => platform.pid(name));
    const before = await stored();
    const wrong: unknown[] = [];
    const send = async (bad: Bad): Promise<void> => {
      const response = await client.api(bad.path, {
        method: bad.method,
        ...(bad.body === undefined ? {} : { body: bad.body }),
        headers: { 'content-type': 'application/json', ...bad.headers },
        signal: AbortSignal.timeout(10_000),
      });
      const text = await response.text();
      let envelope: { type?: string; error?: { type?: string; message?: string }; request_id?: string } = {};
      try {
        envelope = JSON.parse(text) as typeof envelope;
      } catch {
        // Seen below.
      }
      const refused = response.status >= 400 && response.status < 500;
      const shaped =
        envelope.type === 'error' &&
        typeof envelope.error?.type === 'string' &&
        typeof envelope.error.message === 'string' &&
        typeof envelope.request_id === 'string';
      if (!refused || !shaped)
        wrong.push([
          bad.method,
          bad.path.slice(0, 200),
          bad.body?.slice(0, 300),
          bad.headers,
          response.status,
          text.slice(0, 300),
        ]);
    };
    const all = fc.sample(
      fc.oneof(
        { arbitrary: spoiltBody, weight: 5 },
        { arbitrary: brokenText, weight: 2 },
        { arbitrary: wrongPlace, weight: 4 },
        { arbitrary: badQuery, weight: 2 },
        { arbitrary: badHead, weight: 1 },
      ),
      { numRuns: RUNS, seed: SEED },
    );
    expect(all).toHaveLength(RUNS);
    const queue = [...all];
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (let next = queue.pop(); next !== undefined; next = queue.pop()) await send(next);
      }),
    );
    expect(wrong.slice(0, 10)).toEqual([]);
    expect(await stored()).toEqual(before);
    expect(['gateway-api', 'session', 'sandbox'].map((name) => platform.pid(name))).toEqual(services);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
    expect((await client.api('/v1/agents')).status).toBe(200);
  }, 120_000);

  it('above the size bound are refused without being read to the end', async () => {
    const body = JSON.stringify({ events: [userMessage('x'.repeat(33 * 1024 * 1024))] });
    const response = await client
      .api(`/v1/sessions/${ids.session}/events`, {
        method: 'POST',
        body,
        headers: { 'content-type': 'application/json' },
      })
      .catch(() => null);
    // Closing the connection in the middle of the upload is an answer as well.
    expect([413, undefined]).toContain(response?.status);
  });

  it('for ids of another workspace are not found', async () => {
    const foreign = await platform.secondWorkspace();
    const other = new TestClient({ apiUrl: platform.apiUrl, apiKey: foreign });
    for (const [method, path, json] of [
      ['GET', `/v1/agents/${ids.agent}`],
      ['POST', `/v1/agents/${ids.agent}`, { name: 'mine' }],
      ['POST', `/v1/agents/${ids.agent}/archive`, {}],
      ['GET', `/v1/environments/${ids.environment}`],
      ['GET', `/v1/sessions/${ids.session}`],
      ['GET', `/v1/sessions/${ids.session}/events`],
      ['GET', `/v1/sessions/${ids.session}/events/stream?after=0`],
      ['GET', `/v1/sessions/${ids.session}/x/timeline`],
      ['POST', `/v1/sessions/${ids.session}/events`, { events: [userMessage('x')] }],
      ['POST', `/v1/sessions/${ids.session}/archive`, {}],
      ['DELETE', `/v1/sessions/${ids.session}`],
      ['POST', '/v1/sessions', { agent: ids.agent, environment_id: ids.environment }],
    ] as const) {
      const response = await other.api(path, { method, ...(json === undefined ? {} : { json }) });
      expect([method, path, response.status]).toEqual([method, path, 404]);
    }
    expect(await other.json('/v1/sessions')).toMatchObject({ data: [] });
  });
});
