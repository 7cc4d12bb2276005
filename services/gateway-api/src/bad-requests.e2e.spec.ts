import { readdirSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type RequestOptions, startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import pg from 'pg';

const RUNS = 2_000;
const SEED = 20_261_124;
const STREAMS_PER_KEY = 40;

/** One workspace's objects, and a call in it that waits for the client. */
interface Own {
  readonly agent: string;
  readonly environment: string;
  readonly session: string;
  readonly event: string;
  readonly confirmation: string;
  readonly customCall: string;
  readonly apiKey: string;
  readonly sessionsPage: string;
}

let platform: TestPlatform;
let client: TestClient;
let foreignClient: TestClient;
let database: pg.Pool;
let ids: Own;
let foreign: Own;

beforeAll(async () => {
  platform = await startPlatform({ STREAMS_PER_KEY: String(STREAMS_PER_KEY), SSE_PING_MS: '500' });
  client = new TestClient(platform);
  foreignClient = new TestClient({ apiUrl: platform.apiUrl, apiKey: await platform.secondWorkspace() });
  database = new pg.Pool({ connectionString: platform.databaseUrl, max: 1 });
  ids = await furnish(client);
  foreign = await furnish(foreignClient);
}, 240_000);
afterAll(async () => {
  await database?.end();
  await platform?.stop();
}, 60_000);

async function furnish(owner: TestClient): Promise<Own> {
  const agent = await owner.json<{ id: string }>('/v1/agents', {
    json: {
      name: 'spec',
      model: 'demo',
      tools: [
        { type: 'agent_toolset_20260401', default_config: { permission_policy: { type: 'always_ask' } } },
        { type: 'custom', name: 'lookup', description: 'looks up', input_schema: { type: 'object' } },
      ],
    },
  });
  const environment = await owner.json<{ id: string }>('/v1/environments', { json: { name: 'own' } });
  const start = async (prompt: string): Promise<string> => {
    const body = { agent: agent.id, environment_id: environment.id, initial_events: [userMessage(prompt)] };
    const { id } = await owner.json<{ id: string }>('/v1/sessions', { json: body });
    await owner.untilIdle(id, 20_000);
    return id;
  };
  const session = await start('RUN[true]');
  const events = await owner.events(session);
  const asked = await owner.events(await start('ASK[lookup]'));
  const { next_page: sessionsPage } = await owner.json<{ next_page: string }>('/v1/sessions?limit=1');
  return {
    agent: agent.id,
    environment: environment.id,
    session,
    event: events[0]?.id ?? '',
    confirmation: events.find(({ type }) => type === 'agent.tool_use')?.id ?? '',
    customCall: asked.find(({ type }) => type === 'agent.custom_tool_use')?.id ?? '',
    apiKey: (await owner.json<{ credential_id: string }>('/v1/x/me')).credential_id,
    sessionsPage,
  };
}

/** Everything that a request could have stored. */
async function stored(): Promise<unknown> {
  const tables = [
    'events',
    'streams',
    'agents',
    'agent_versions',
    'environments',
    'files',
    'file_blobs',
    'sessions',
    'api_keys',
    'idempotency',
  ];
  const hashes = await Promise.all(
    tables.map(async (table) => {
      const { rows } = await database.query<{ hash: string }>(
        `select md5(coalesce(string_agg(t::text, '|' order by t::text), '')) as hash from ${table} t`,
      );
      return [table, rows[0]?.hash];
    }),
  );
  const blobs = readdirSync(join(platform.stateDir), { recursive: true, encoding: 'utf8' });
  return { ...Object.fromEntries(hashes), blobs: blobs.filter((path) => path.startsWith('blobs')).sort() };
}

/** A request for the whole test: what it was when it is not answered as it should be, else undefined. */
async function refusal(bad: Bad, from: TestClient = client): Promise<unknown> {
  const response = await from.api(bad.path, {
    method: bad.method,
    ...(bad.body === undefined ? {} : { body: bad.body }),
    headers: { 'content-type': 'application/json', ...bad.headers },
    signal: AbortSignal.timeout(15_000),
  });
  const text = await response.text();
  const what = [bad.method, bad.path.slice(0, 300), String(bad.body).slice(0, 400), bad.headers];
  const answer = [response.status, text.slice(0, 300)];
  if (response.status < 400 || response.status > 499) return [...what, ...answer];
  if (bad.method === 'HEAD') return undefined;
  return isEnvelope(text, response.headers.get('request-id')) ? undefined : [...what, ...answer];
}

function isEnvelope(text: string, requestId: string | null): boolean {
  try {
    const { type, error, request_id: id } = JSON.parse(text) as Record<string, unknown>;
    const { type: errorType, message, details } = error as Record<string, unknown>;
    const { error_code: code } = details as Record<string, unknown>;
    return type === 'error' && id === requestId && [errorType, message, code].every((one) => typeof one === 'string');
  } catch {
    return false;
  }
}

interface Bad {
  readonly method: string;
  readonly path: string;
  readonly body?: string;
  readonly headers?: Record<string, string>;
}

/** Bodies that would be accepted, to be spoilt in one place each. */
const bodies: readonly (readonly [path: (own: Own) => string, valid: (own: Own) => Record<string, unknown>])[] = [
  [
    () => '/v1/agents',
    () => ({
      name: 'a',
      model: { id: 'demo', effort: 'low' },
      system: 's',
      description: 'd',
      metadata: { key: 'value' },
      tools: [
        {
          type: 'agent_toolset_20260401',
          default_config: { enabled: true, permission_policy: { type: 'always_ask' } },
          configs: [{ name: 'web_fetch', enabled: true, allowed_domains: ['example.com'], max_content_tokens: 10 }],
        },
        { type: 'custom', name: 'c', description: 'd', input_schema: { type: 'object' } },
      ],
    }),
  ],
  [({ agent }) => `/v1/agents/${agent}`, () => ({ version: 1, name: 'a', metadata: { key: 'value' } })],
  [
    () => '/v1/environments',
    () => ({
      name: 'e',
      description: 'd',
      metadata: { key: 'value' },
      config: {
        type: 'cloud',
        networking: { type: 'limited', allowed_hosts: ['example.com'], allow_mcp_servers: true },
        x_sandbox: {
          image: 'python:3.13',
          cpu_millis: 500,
          node_selector: { disk: 'ssd' },
          tolerations: [{ key: 'gpu', operator: 'Exists' }],
          workspace: 'ephemeral',
        },
      },
    }),
  ],
  [({ environment }) => `/v1/environments/${environment}`, () => ({ name: 'e', config: { type: 'cloud' } })],
  [
    () => '/v1/sessions',
    (own) => ({
      agent: { type: 'agent_with_overrides', id: own.agent, version: 1, tools: [], model: 'demo' },
      environment_id: own.environment,
      title: 't',
      metadata: { key: 'value' },
      initial_events: [{ type: 'user.message', content: [{ type: 'text', text: 'x' }] }],
      x_context_key: 'k',
    }),
  ],
  [() => '/api/sessions', (own) => ({ agent_id: own.agent, prompt: 'p', environment_id: own.environment, title: 't' })],
  [
    ({ session }) => `/v1/sessions/${session}`,
    () => ({ title: 't', metadata: { key: 'value' }, agent: { tools: [] } }),
  ],
  [
    ({ session }) => `/v1/sessions/${session}/events`,
    (own) => ({
      events: [
        {
          type: 'user.message',
          content: [
            { type: 'text', text: 'x' },
            { type: 'image', source: { type: 'base64', media_type: 'image/png', data: 'AAAA' } },
            { type: 'document', source: { type: 'url', url: 'https://example.com/a.pdf' }, title: 't' },
          ],
        },
        { type: 'user.tool_confirmation', tool_use_id: own.confirmation, result: 'deny', deny_message: 'no' },
      ],
    }),
  ],
  [() => '/v1/x/api_keys', () => ({ name: 'k' })],
];

/** Real ids are not known while the requests are drawn. */
const PLACEHOLDERS: Own = {
  agent: '@agent@',
  environment: '@environment@',
  session: '@session@',
  event: '@event@',
  confirmation: '@confirmation@',
  customCall: '@customCall@',
  apiKey: '@apiKey@',
  sessionsPage: '@sessionsPage@',
};

/** Stands for a number that JSON can write and no double can hold. */
const INFINITE = '@@infinite@@';

/** Breaks a body wherever it stands. */
const poison: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom<unknown>(
    'nul\u0000inside',
    'lone\ud800surrogate',
    '\udfff',
    JSON.parse('{"__proto__": {"polluted": true}}'),
    JSON.parse('{"constructor": {"prototype": {"polluted": true}}}'),
    { nul: ['deep', { inside: '\u0000' }] },
    INFINITE,
  ),
  fc.integer({ min: 64, max: 3_000 }).map(deep),
);
function deep(levels: number): unknown {
  let value: unknown = 1;
  for (let i = 0; i < levels; i++) value = i % 2 === 0 ? [value] : { a: value };
  return value;
}

/** Wrong for a field that held `value`: another type, or the type with something no field of it takes. */
function wrongFor(value: unknown, content: boolean): fc.Arbitrary<unknown> {
  const unfit = [{ nope: 1 }, [[]], [{ nope: [null] }]];
  if (typeof value === 'string')
    return fc.constantFrom<unknown>(true, 0, -1, 1e308, 'x'.repeat(content ? 4_000_001 : 100_001), ...unfit);
  if (typeof value === 'number') return fc.constantFrom<unknown>('1', true, -1, 0, 0.5, 2 ** 53, 1e308, ...unfit);
  if (typeof value === 'boolean') return fc.constantFrom<unknown>('true', 1, ...unfit);
  if (Array.isArray(value)) return fc.constantFrom<unknown>('text', 1, true, { 0: 'a', length: 1 }, [null], [[]], [{}]);
  return fc.constantFrom<unknown>('text', 1, true, [], [{}], { nope: 1 }, { toString: 1, valueOf: 2 });
}

function placesOf(value: unknown, at: readonly (string | number)[] = []): (readonly (string | number)[])[] {
  if (typeof value !== 'object' || value === null) return [at];
  const entries: [string | number, unknown][] = Array.isArray(value) ? [...value.entries()] : Object.entries(value);
  return [...(at.length === 0 ? [] : [at]), ...entries.flatMap(([key, inner]) => placesOf(inner, [...at, key]))];
}
function valueAt(value: unknown, place: readonly (string | number)[]): unknown {
  return place.reduce<unknown>((inner, key) => (inner as Record<string | number, unknown>)[key], value);
}
function spoil(body: unknown, place: readonly (string | number)[], wrong: unknown): string {
  const copy = structuredClone(body);
  (valueAt(copy, place.slice(0, -1)) as Record<string | number, unknown>)[place.at(-1) ?? ''] = wrong;
  return JSON.stringify(copy).replaceAll(`"${INFINITE}"`, '1e999');
}

/** A valid body with one value replaced, or one key too many in one of its objects. */
const spoiltBody: fc.Arbitrary<Bad> = fc.nat(bodies.length - 1).chain((n) => {
  const [path, valid] = bodies[n] as (typeof bodies)[number];
  const body = valid(PLACEHOLDERS);
  const request = (text: string): Bad => ({ method: 'POST', path: path(PLACEHOLDERS), body: text });
  return fc.constantFrom(...placesOf(body)).chain((place) => {
    const value = valueAt(body, place);
    const isObject =
      typeof value === 'object' &&
      !Array.isArray(value) &&
      !['metadata', 'input_schema'].includes(String(place.at(-1)));
    return fc
      .oneof(
        {
          arbitrary: wrongFor(value, path(PLACEHOLDERS).includes('/sessions')).map((wrong) =>
            spoil(body, place, wrong),
          ),
          weight: 4,
        },
        { arbitrary: poison.map((wrong) => spoil(body, place, wrong)), weight: 2 },
        { arbitrary: poison.map((wrong) => spoil(body, ['unknown'], wrong)), weight: 1 },
        ...(isObject ? [{ arbitrary: fc.constant(spoil(body, [...place, 'unknown'], 1)), weight: 1 }] : []),
      )
      .map(request);
  });
});
function withIds(bad: Bad): Bad {
  const put = (text: string): string => text.replace(/@(\w+)@/g, (whole, name: keyof Own) => ids[name] ?? whole);
  return { ...bad, path: put(bad.path), ...(bad.body === undefined ? {} : { body: put(bad.body) }) };
}

const brokenText: fc.Arbitrary<Bad> = fc
  .record({
    n: fc.nat(bodies.length - 1),
    body: fc.oneof(
      fc.constantFrom(
        '{',
        'null',
        '[]',
        '"text"',
        '{"a":}',
        '\u0000',
        'a=b',
        '{"a":1}{"b":2}',
        "{'name': 'a'}",
        '\ufeff{"name":"a"}',
        '{"name":"a",}',
        '{"name":NaN}',
        '{"name":"\\x41"}',
        '{"name":"unended',
        '['.repeat(50_000),
        '{"a":'.repeat(5_000),
        `[${'[],'.repeat(400_000)}1]`,
        `{"name":"${'\\ud800'}"}`,
      ),
      fc.string({ maxLength: 200 }),
      fc.string({ unit: 'binary', maxLength: 200 }),
    ),
    type: fc.constantFrom(
      'application/json',
      'text/plain',
      'multipart/form-data; boundary=x',
      'application/x-www-form-urlencoded',
      'application/json; charset=utf-16',
      '',
      ';;;',
    ),
  })
  .map(({ n, body, type }) => ({
    method: 'POST',
    path: (bodies[n] as (typeof bodies)[number])[0](PLACEHOLDERS),
    body: body === '' ? 'x' : body,
    headers: { 'content-type': type },
  }));

const badId = fc.oneof(
  fc.constantFrom(
    'sesn_none',
    'agent_none',
    '..%2f..%2fetc%2fpasswd',
    '%2e%2e',
    '%00',
    '%zz',
    '%ed%a0%80',
    "'; drop table events; --",
    '__proto__',
    'constructor',
    '💥',
    'null',
    'a'.repeat(600),
    'a'.repeat(9_000),
  ),
  fc.string({ minLength: 1, maxLength: 40 }).filter((text) => !/^[./]+$/.test(text)),
  // Well-formed and of nobody here.
  fc.constantFrom('sesn', 'agent', 'env', 'sevt', 'apikey').map((kind) => `${kind}_01a20b71210f76a88f89cdf7f308ffff`),
);

const wrongPlace: fc.Arbitrary<Bad> = fc
  .record({
    kind: fc.constantFrom(
      'agents',
      'environments',
      'sessions',
      'models',
      'nothing',
      'x/api_keys',
      'x/sandboxes',
      'x/sandbox_pools',
    ),
    id: badId,
    rest: fc.constantFrom(
      '',
      '/events',
      '/events/stream?after=0',
      '/archive',
      '/versions',
      '/threads',
      '/x/timeline',
      '/revoke',
      '/unknown',
      '/',
      '//events',
      '/events/..',
    ),
    method: fc.constantFrom('GET', 'POST', 'DELETE', 'PUT', 'PATCH', 'OPTIONS', 'HEAD'),
  })
  .map(({ kind, id, rest, method }) => ({
    method,
    path: `/v1/${kind}/${/^[\w%.;' -]+$/.test(id) ? encodeURI(id).replaceAll('%25', '%') : encodeURIComponent(id.toWellFormed())}${rest}`,
    ...(method === 'POST' || method === 'PUT' || method === 'PATCH' ? { body: '{}' } : {}),
  }));

const token = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
const badPages = [
  'garbage',
  'eyJhIjoxfQ',
  '%00',
  'sevt_none',
  'A'.repeat(5_000),
  ...['agents', 'environments', 'sessions', 'events', 'agent_versions', 'api_keys', 'sandboxes'].flatMap((list) => [
    token([list, 'desc', { t: 1, i: '\u0000', d: 'next' }]),
    token([list, 'desc', { t: 1e300, i: 'a', d: 'next' }]),
    token([list, 'asc', { s: 2 ** 31 }]),
    token([list, 'asc', { p: Number.MAX_SAFE_INTEGER }]),
    token([list, 'up', {}]),
    token([list, 'desc', { t: 1, i: 'a', d: 'sideways' }]),
  ]),
];
const badTimes = [
  '0000-01-01T00:00:00Z',
  '2026-02-30T00:00:00Z',
  '9999-12-31T23:59:59-01:00',
  'now',
  '2026-01-01',
  '1',
  '%00',
];
const badQuery: fc.Arbitrary<Bad> = fc
  .constantFrom<readonly [string, readonly string[]]>(
    ...[
      '/v1/agents',
      '/v1/environments',
      '/v1/files',
      '/v1/sessions',
      '/v1/sessions/@session@/events',
      '/v1/agents/@agent@/versions',
      '/v1/x/api_keys',
      '/v1/x/sandboxes',
      '/v1/x/sandbox_pools',
    ].map((path): [string, string[]] => [
      path,
      [
        ...['0', '-1', '1.5', 'NaN', '1e3', '100000', '99999999999999999999', '%00', '1&limit=2'].map(
          (one) => `limit=${one}`,
        ),
        ...badPages.map((page) => `page=${page}`),
      ],
    ]),
    ['/v1/files', ['ids[]=%00', 'scope_id=%00', 'ids[]=file_1&page=x', `${'ids[]=file_1&'.repeat(101)}`]],
    ['/v1/agents', ['include_archived=maybe', ...badTimes.map((time) => `created_at[lte]=${time}`)]],
    ['/v1/agents/@agent@', ['version=0', 'version=-1', 'version=2147483648', 'version=x', 'version=99']],
    [
      '/v1/sessions',
      [
        'order=up',
        'statuses[]=busy',
        'statuses=idle&statuses=%00',
        'agent_version=0',
        'deployment_id=depl_1',
        'memory_store_id=memstore_1',
        `${'statuses[]=idle&'.repeat(101)}`,
        ...['gt', 'gte', 'lt', 'lte'].flatMap((bound) => badTimes.map((time) => `created_at[${bound}]=${time}`)),
      ],
    ],
    [
      '/v1/sessions/@session@/events',
      [
        'order=down',
        `types[]=${'t'.repeat(3_000)}`,
        'types[]=a%00',
        ...badTimes.map((time) => `created_at[gt]=${time}`),
      ],
    ],
    [
      '/v1/sessions/@session@/events/stream',
      [
        'event_deltas[]=user.message',
        ...['-1', '1.5', '99999999', '1e9', 'abc', 'sevt_none', '%00', '0&after=0'].map((one) => `after=${one}`),
      ],
    ],
    ['/v1/x/sandboxes', ['status[]=lost', 'status=%00', 'session_id=a&session_id=b', 'environment_id=%00']],
    ['/v1/sessions/@session@/x/timeline', ['after=-5', 'after=x', 'after=4294967296', 'limit=0', 'limit=1001']],
  )
  .chain(([path, queries]) =>
    fc.constantFrom(...queries).map((query) => ({ method: 'GET', path: `${path}?${query}` })),
  );

const badHead: fc.Arbitrary<Bad> = fc.constantFrom<Bad>(
  { method: 'GET', path: '/v1/agents', headers: { 'x-api-key': '' } },
  { method: 'GET', path: '/v1/agents', headers: { 'x-api-key': 'hf_wrong' } },
  { method: 'GET', path: '/v1/agents', headers: { 'x-api-key': `hf_${'A'.repeat(43)}` } },
  { method: 'GET', path: '/v1/agents', headers: { 'x-api-key': `hfl_${'A'.repeat(43)}` } },
  { method: 'GET', path: '/v1/agents', headers: { 'x-api-key': 'x'.repeat(7_000) } },
  { method: 'GET', path: '/v1/agents', headers: { authorization: 'Bearer', 'x-api-key': '' } },
  { method: 'GET', path: '/v1/agents', headers: { authorization: 'Basic aGY6aGY=', 'x-api-key': '' } },
  { method: 'GET', path: '/v1/agents', headers: { 'anthropic-workspace-id': 'wrkspc_second' } },
  { method: 'GET', path: '/v1/sessions/@session@/events/stream', headers: { 'last-event-id': '99999999' } },
  { method: 'GET', path: '/v1/sessions/@session@/events/stream', headers: { 'last-event-id': '\u00ff\u00fe' } },
  { method: 'POST', path: '/v1/agents', body: '{}', headers: { 'idempotency-key': 'k'.repeat(300) } },
  { method: 'POST', path: '/v1/agents', body: '{"name":"a","model":"demo"}', headers: { 'idempotency-key': '\u00e4' } },
  { method: 'POST', path: '/v1/x/dashboard_sessions', body: '{"link_token":"hfl_none"}', headers: { 'x-api-key': '' } },
  { method: 'HEAD', path: '/v1/sessions/@session@/events/stream' },
);

describe('bad requests', () => {
  it(`are refused with the envelope, ${RUNS} of them; nothing is stored and nothing falls over`, async () => {
    const services = ['gateway-api', 'session', 'sandbox'].map((name) => platform.pid(name));
    const before = await stored();
    const all = fc.sample(
      fc.oneof(
        { arbitrary: spoiltBody, weight: 6 },
        { arbitrary: brokenText, weight: 2 },
        { arbitrary: wrongPlace, weight: 4 },
        { arbitrary: badQuery, weight: 4 },
        { arbitrary: badHead, weight: 1 },
      ),
      { numRuns: RUNS, seed: SEED },
    );
    expect(all).toHaveLength(RUNS);
    const wrong: unknown[] = [];
    const queue = all.map(withIds).values();
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (const bad of queue) {
          const answer = await refusal(bad);
          if (answer !== undefined) wrong.push(answer);
        }
      }),
    );
    expect(wrong.slice(0, 10)).toEqual([]);
    expect(await stored()).toEqual(before);
    expect(['gateway-api', 'session', 'sandbox'].map((name) => platform.pid(name))).toEqual(services);
    expect(platform.log('gateway-api')).not.toMatch(/"level":50/);
    expect(platform.log('session')).not.toMatch(/"level":50/);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
    expect((await client.api('/v1/agents')).status).toBe(200);
  }, 120_000);

  it('that are too large are refused by their size, whatever they hold', async () => {
    const before = await stored();
    const big = 'x'.repeat(60_000);
    const schema = { type: 'object', description: 'x'.repeat(300_000) };
    const events = `/v1/sessions/${ids.session}/events`;
    const many = Array.from({ length: 200 }, () => ({ type: 'text', text: 'x' }));
    const cases: [string, unknown, number][] = [
      ['/v1/agents', { name: 'a', model: 'demo', description: 'x'.repeat(2_000_000) }, 413],
      [
        '/v1/agents',
        { name: 'a', model: 'demo', tools: [{ type: 'custom', name: 'c', description: '', input_schema: schema }] },
        400,
      ],
      [events, { events: Array.from({ length: 51 }, () => userMessage('x')) }, 400],
      [events, { events: Array.from({ length: 6 }, () => ({ type: 'user.message', content: many })) }, 400],
      [
        events,
        {
          events: [
            userMessage('x'),
            {
              type: 'system.message',
              content: [
                { type: 'text', text: big },
                { type: 'text', text: big },
              ],
            },
          ],
        },
        400,
      ],
      ['/v1/sessions/sesn_none/events', { events: [userMessage(big.repeat(20))] }, 404],
      [
        '/v1/sessions',
        { agent: 'agent_none', environment_id: ids.environment, initial_events: [userMessage(big.repeat(20))] },
        404,
      ],
      [
        '/v1/sessions',
        { agent: ids.agent, environment_id: 'env_none', initial_events: [userMessage(big.repeat(20))] },
        404,
      ],
    ];
    for (const [path, json, status] of cases) {
      const response = await client.api(path, { json });
      const text = await response.text();
      expect([path, response.status, text.slice(0, 200)]).toEqual([path, status, expect.anything()]);
      expect(isEnvelope(text, response.headers.get('request-id'))).toBe(true);
    }
    const flood = await client.api(events, { json: { events: [userMessage('x'.repeat(33 * 1024 * 1024))] } });
    expect(flood.status).toBe(413);
    expect(await stored()).toEqual(before);
  }, 60_000);

  it('for ids of another workspace find nothing, wherever an id may stand', async () => {
    const before = await stored();
    const { agent, environment, session, event, confirmation, customCall, apiKey } = ids;
    const events = (...list: object[]): RequestOptions => ({ json: { events: list } });
    const own = `/v1/sessions/${foreign.session}`;
    const cases: [string, string, RequestOptions, number][] = [
      ['GET', `/v1/agents/${agent}`, {}, 404],
      ['GET', `/v1/agents/${agent}?version=1`, {}, 404],
      ['GET', `/v1/agents/${agent}/versions`, {}, 404],
      ['POST', `/v1/agents/${agent}`, { json: { name: 'mine' } }, 404],
      ['POST', `/v1/agents/${agent}/archive`, {}, 404],
      ['GET', `/v1/environments/${environment}`, {}, 404],
      ['POST', `/v1/environments/${environment}`, { json: { name: 'mine' } }, 404],
      ['POST', `/v1/environments/${environment}/archive`, {}, 404],
      ['DELETE', `/v1/environments/${environment}`, {}, 404],
      ['GET', `/v1/sessions/${session}`, {}, 404],
      ['GET', `/v1/sessions/${session}/events`, {}, 404],
      ['GET', `/v1/sessions/${session}/events?page=${event}`, {}, 404],
      ['GET', `/v1/sessions/${session}/events/stream?after=0`, {}, 404],
      ['GET', `/v1/sessions/${session}/x/timeline`, {}, 404],
      ['POST', `/v1/sessions/${session}`, { json: { title: 'mine' } }, 404],
      ['POST', `/v1/sessions/${session}/events`, events(userMessage('x')), 404],
      ['POST', `/v1/sessions/${session}/events`, events(userMessage('x'.repeat(100_000))), 404],
      ['POST', `/v1/sessions/${session}/archive`, {}, 404],
      ['DELETE', `/v1/sessions/${session}`, {}, 404],
      ['POST', `/v1/x/api_keys/${apiKey}/revoke`, {}, 404],
      ['POST', '/v1/sessions', { json: { agent, environment_id: foreign.environment } }, 404],
      [
        'POST',
        '/v1/sessions',
        { json: { agent: { type: 'agent', id: agent, version: 1 }, environment_id: foreign.environment } },
        404,
      ],
      [
        'POST',
        '/v1/sessions',
        { json: { agent: { type: 'agent_with_overrides', id: agent }, environment_id: foreign.environment } },
        404,
      ],
      ['POST', '/v1/sessions', { json: { agent: foreign.agent, environment_id: environment } }, 404],
      ['POST', '/api/sessions', { json: { agent_id: agent, environment_id: foreign.environment } }, 404],
      ['POST', '/api/sessions', { json: { agent_id: foreign.agent, environment_id: environment } }, 404],
      // In a session of one's own, another's events are not there either.
      ['GET', `${own}/events?page=${event}`, {}, 400],
      ['GET', `${own}/events/stream?after=${event}`, {}, 400],
      ['GET', `${own}/events/stream`, { headers: { 'last-event-id': event } }, 400],
      [
        'POST',
        `${own}/events`,
        events({ type: 'user.tool_confirmation', tool_use_id: confirmation, result: 'allow' }),
        400,
      ],
      ['POST', `${own}/events`, events({ type: 'user.custom_tool_result', custom_tool_use_id: customCall }), 400],
      ['GET', '/v1/agents', { headers: { 'anthropic-workspace-id': 'wrkspc_default' } }, 404],
    ];
    for (const [method, path, options, status] of cases) {
      const response = await foreignClient.api(path, { method, ...options });
      const text = await response.text();
      expect([method, path, response.status, text.slice(0, 200)]).toEqual([method, path, status, expect.anything()]);
      expect(isEnvelope(text, response.headers.get('request-id'))).toBe(true);
    }
    // A filter or a page token of another workspace shows nothing of it.
    for (const query of [
      `agent_id=${agent}`,
      `page=${ids.sessionsPage}`,
      `page=${ids.sessionsPage}&include_archived=true`,
    ]) {
      const { data } = await foreignClient.json<{ data: { agent: { id: string } }[] }>(`/v1/sessions?${query}`);
      expect(data.filter((one) => one.agent.id !== foreign.agent)).toEqual([]);
    }
    expect(await stored()).toEqual(before);
  }, 60_000);
});

describe('connections that are abused', () => {
  const openStreams = async (): Promise<number> => {
    const { services } = await client.json<{ services: { service: string; figures: { openStreams?: number } }[] }>(
      '/v1/x/status',
    );
    return services.find(({ service }) => service === 'gateway-api')?.figures.openStreams ?? Number.NaN;
  };

  it('get no more streams than a key may have, and give them back', async () => {
    const controller = new AbortController();
    const open = Array.from({ length: STREAMS_PER_KEY + 10 }, () =>
      client.api(`/v1/sessions/${ids.session}/events/stream`, { signal: controller.signal }),
    );
    const answers = await Promise.all(open);
    const refused = answers.filter(({ status }) => status === 429);
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(STREAMS_PER_KEY);
    expect(refused).toHaveLength(10);
    expect(refused[0]?.headers.get('retry-after')).toBe('1');
    expect(await refused[0]?.json()).toMatchObject({ type: 'error', error: { type: 'rate_limit_error' } });
    // Another key has its own.
    const other = await foreignClient.api(`/v1/sessions/${foreign.session}/events/stream`, {
      signal: controller.signal,
    });
    expect(other.status).toBe(200);
    controller.abort();
    for (const deadline = Date.now() + 5_000; (await openStreams()) !== 0; await sleep(100)) {
      if (Date.now() > deadline) throw new Error(`${await openStreams()} streams are still open`);
    }
  }, 30_000);

  it('leave no stream behind when the client is gone before it is served', async () => {
    const { hostname, port } = new URL(platform.apiUrl);
    for (let n = 0; n < 200; n++) {
      await new Promise<void>((resolve) => {
        const socket = connect(Number(port), hostname, () => {
          socket.write(
            `GET /v1/sessions/${ids.session}/events/stream?after=0 HTTP/1.1\r\nhost: x\r\nx-api-key: ${platform.apiKey}\r\n\r\n`,
            () => setTimeout(() => socket.destroy(), n % 4),
          );
        });
        socket.on('close', () => resolve());
      });
    }
    await sleep(1_500);
    expect(await openStreams()).toBe(0);
    expect((await client.api(`/v1/sessions/${ids.session}`)).status).toBe(200);
  }, 30_000);

  it('are told that a key is not valid before their body is read', async () => {
    const { hostname, port } = new URL(platform.apiUrl);
    const answer = await new Promise<string>((resolve, reject) => {
      const socket = connect(Number(port), hostname, () =>
        socket.write(
          'POST /v1/sessions HTTP/1.1\r\nhost: x\r\nx-api-key: hf_wrong\r\ncontent-length: 30000000\r\n\r\n{',
        ),
      );
      socket.on('error', reject);
      socket.on('data', (piece) => {
        resolve(piece.toString());
        socket.destroy();
      });
    });
    expect(answer).toMatch(/^HTTP\/1.1 401 /);
  }, 10_000);

  it('with a key that was revoked unheard are closed all the same', async () => {
    const { id, key } = await client.json<{ id: string; key: string }>('/v1/x/api_keys', { json: { name: 'lost' } });
    const stream = new TestClient({ apiUrl: platform.apiUrl, apiKey: key }).frames(
      `/v1/sessions/${ids.session}/events/stream`,
      (all) => all.at(-1)?.event === 'error',
    );
    await sleep(200);
    // As if the message on the bus had been lost.
    await database.query('update api_keys set revoked_at = clock_timestamp() where id = $1', [id]);
    expect((await stream).at(-1)?.data).toMatchObject({ error: { type: 'authentication_error' } });
  }, 30_000);
});
