import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Agent,
  agentResource,
  apiKeyResource,
  DEFAULT_SANDBOX,
  type Environment,
  environmentResource,
  modelResource,
  platformStatus,
  primaryThreadId,
  SANDBOX_HINTS,
  type Sandbox,
  type SandboxPool,
  type Session,
  sandboxPoolResource,
  sandboxResource,
  sessionEventResource,
  sessionFileResource,
  sessionResourceSchema,
  threadResource,
  timelinePage,
  type WireEvent,
} from '@holdfast/contracts';
import {
  type Frame,
  type RequestOptions,
  startPlatform,
  TestClient,
  type TestPlatform,
  userMessage,
} from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { z } from 'zod';

/** Everything the contract says of the API, asked of the whole platform; the SDKs' own flows are in sdk.e2e. */

interface Page<T> {
  readonly data: readonly T[];
  readonly next_page: string | null;
  readonly prev_page?: string | null;
}

let platform: TestPlatform;
let client: TestClient;
let environment: Environment;
beforeAll(async () => {
  // What a service on a cluster records is written by hand here, so none of them may look after it.
  platform = await startPlatform({ SSE_PING_MS: '300', SANDBOX_PROVIDER: 'local' });
  client = new TestClient(platform);
  environment = await client.json('/v1/environments', { json: { name: 'wire' } });
}, 240_000);
afterAll(() => platform?.stop(), 60_000);

const ASKS = [
  { type: 'agent_toolset_20260401', configs: [{ name: 'bash', permission_policy: { type: 'always_ask' } }] },
  { type: 'custom', name: 'lookup', description: 'looks up', input_schema: { type: 'object' } },
];
let names = 0;
const newAgent = (rest: object = {}): Promise<Agent> =>
  client.json('/v1/agents', { json: { name: `agent ${names++}`, model: 'demo', ...rest } });
const newEnvironment = (rest: object = {}): Promise<Environment> =>
  client.json('/v1/environments', { json: { name: `environment ${names++}`, ...rest } });
async function newSession(prompt?: string, rest: object = {}): Promise<Session> {
  const agent = await newAgent({ tools: ASKS });
  return client.json('/v1/sessions', {
    json: {
      agent: agent.id,
      environment_id: environment.id,
      ...(prompt === undefined ? {} : { initial_events: [userMessage(prompt)] }),
      ...rest,
    },
  });
}
const send = (id: string, ...events: object[]): Promise<{ data: WireEvent[] }> =>
  client.json(`/v1/sessions/${id}/events`, { json: { events } });
const types = (events: readonly { type: string }[]): string[] => events.map(({ type }) => type);
const isIdle = (all: readonly Frame[]): boolean => all.at(-1)?.event === 'session.status_idle';

interface Failure {
  readonly status: number;
  readonly type: string;
  readonly code: string;
  readonly message: string;
  readonly headers: Headers;
}
async function failure(path: string, options: RequestOptions = {}): Promise<Failure> {
  const response = await client.api(path, options);
  const body = (await response.json()) as {
    type: string;
    request_id: string;
    error: { type: string; message: string; details: { error_code: string } };
  };
  expect(body).toMatchObject({ type: 'error', request_id: response.headers.get('request-id') });
  const { type, message, details } = body.error;
  return { status: response.status, type, code: details.error_code, message, headers: response.headers };
}

describe('every object', () => {
  it('has each key of the contract and no other, wherever it is shown', async () => {
    const agent = await newAgent({ tools: ASKS, description: 'd', system: 's', metadata: { k: 'v' } });
    const page = <S extends z.ZodType>(item: S) =>
      z.strictObject({
        data: z.array(item).min(1),
        next_page: z.string().nullable(),
        prev_page: z.string().nullable().optional(),
      });
    const session = await newSession('RUN[true]');
    await client.untilIdle(session.id, 20_000);
    const at = `/v1/sessions/${session.id}`;
    const shown: [string, z.ZodType][] = [
      [`/v1/agents/${agent.id}`, agentResource],
      [`/v1/agents/${agent.id}?version=1`, agentResource],
      [`/v1/agents/${agent.id}/versions`, page(agentResource)],
      ['/v1/agents', page(agentResource)],
      [`/v1/environments/${environment.id}`, environmentResource],
      ['/v1/environments', page(environmentResource)],
      [at, sessionResourceSchema],
      [at.replace('sesn_', 'session_'), sessionResourceSchema],
      ['/v1/sessions', page(sessionResourceSchema)],
      [`${at}/events`, page(sessionEventResource)],
      [`${at}/threads`, page(threadResource)],
      [`${at}/threads/${primaryThreadId(session.id)}`, threadResource],
      [`${at}/threads/${primaryThreadId(session.id)}/events`, page(sessionEventResource)],
      [`${at}/resources`, z.strictObject({ data: z.array(sessionFileResource).max(0), next_page: z.null() })],
      ['/v1/models/demo', modelResource],
      ['/v1/x/api_keys', page(apiKeyResource)],
      ['/v1/x/status', platformStatus],
      [`${at}/x/timeline`, timelinePage],
    ];
    for (const [path, schema] of shown) {
      const parsed = schema.safeParse(await client.json(path));
      expect([path, parsed.error?.issues ?? []]).toEqual([path, []]);
    }
    sessionResourceSchema.parse(session);
    expect(session).toMatchObject({
      budget: null,
      outcome_evaluations: [],
      resources: [],
      vault_ids: [],
      archived_at: null,
    });
    expect(agent).toMatchObject({
      version: 1,
      multiagent: null,
      mcp_servers: [],
      execution_identity: { type: 'service_account' },
    });
    const [toolset] = agent.tools;
    if (toolset?.type !== 'agent_toolset_20260401') throw new Error('no toolset');
    expect(toolset.configs.find(({ name }) => name === 'bash')).toEqual({
      type: 'bash',
      name: 'bash',
      enabled: true,
      permission_policy: { type: 'always_ask' },
    });
    expect(toolset.configs.find(({ name }) => name === 'web_search')).toMatchObject({ enabled: false });
    expect(toolset.configs.find(({ name }) => name === 'web_fetch')).toMatchObject({
      enabled: true,
      url_sources: null,
    });
  }, 30_000);

  it('is reached with either header, and says whose it is', async () => {
    const authorization = `Bearer ${platform.apiKey}`;
    for (const headers of [{ 'x-api-key': platform.apiKey }, { 'x-api-key': '', authorization }]) {
      const response = await client.api('/v1/models?beta=true', {
        headers: {
          ...headers,
          'anthropic-version': '1999-01-01',
          'anthropic-beta': 'x',
          'anthropic-workspace-id': 'wrkspc_default',
        },
      });
      expect([response.status, response.headers.get('anthropic-workspace-id')]).toEqual([200, 'wrkspc_default']);
    }
    expect(await failure('/v1/models', { headers: { 'x-api-key': '' } })).toMatchObject({
      status: 401,
      type: 'authentication_error',
      code: 'auth.missing',
    });
  });
});

describe('agents', () => {
  it('gain a version with a change and none without, keep what is left out, and lose what is null', async () => {
    const made = await newAgent({
      tools: ASKS,
      model: { id: 'demo', effort: 'low' },
      description: 'd',
      system: 's',
      metadata: { a: '1', b: '2' },
    });
    const at = `/v1/agents/${made.id}`;
    const update = (json: object): Promise<Agent> => client.json(at, { json });
    expect(await update({ version: 1, tools: made.tools, model: 'demo', metadata: { a: '1' } })).toEqual(made);
    expect(
      await update({ name: 'renamed', metadata: { a: null, c: '3' }, description: '', system: null }),
    ).toMatchObject({
      version: 2,
      name: 'renamed',
      metadata: { b: '2', c: '3' },
      description: null,
      system: null,
      model: { effort: { type: 'low' } },
    });
    expect(await update({ tools: null })).toMatchObject({ version: 3, tools: [] });
    expect(await failure(at, { json: { version: 1, name: 'late' } })).toMatchObject({
      status: 409,
      type: 'conflict_error',
      code: 'agent.version-conflict',
    });
    expect((await failure(at, { json: { version: 1, name: 'late' } })).headers.get('x-should-retry')).toBe('false');
    expect((await client.json<Page<Agent>>(`${at}/versions`)).data.map(({ version }) => version)).toEqual([3, 2, 1]);
    expect(await client.json(`${at}?version=1`)).toMatchObject({ name: made.name, version: 1 });
    const many = Object.fromEntries(Array.from({ length: 15 }, (_, n) => [`k${n}`, 'v']));
    expect((await failure(at, { json: { metadata: many } })).status).toBe(400);
    expect((await client.json<Agent>(`${at}/archive`, { method: 'POST' })).archived_at).not.toBeNull();
    expect(await failure(at, { json: { name: 'x' } })).toMatchObject({ status: 400, code: 'agent.archived' });
    expect(await failure('/v1/sessions', { json: { agent: made.id, environment_id: environment.id } })).toMatchObject({
      status: 400,
      code: 'agent.archived',
    });
    const listed = async (query: string): Promise<string[]> =>
      (await client.json<Page<Agent>>(`/v1/agents?limit=100${query}`)).data.map(({ id }) => id);
    expect(await listed('')).not.toContain(made.id);
    expect(await listed('&include_archived=true')).toContain(made.id);
  }, 20_000);
});

describe('environments', () => {
  it('take null for what is left out, and keep on update what is left out', async () => {
    const limited = { type: 'limited', allowed_hosts: ['example.com'], allow_mcp_servers: null };
    const made = await newEnvironment({
      config: { type: 'cloud', networking: limited, packages: null },
      description: 'd',
      scope: null,
      metadata: { a: '1', b: '2' },
    });
    const networking = {
      type: 'limited',
      allowed_hosts: ['example.com'],
      allow_mcp_servers: false,
      allow_package_managers: false,
    };
    expect(made).toMatchObject({ scope: 'organization', config: { type: 'cloud', networking, packages: { pip: [] } } });
    const at = `/v1/environments/${made.id}`;
    const update = (json: object): Promise<Environment> => client.json(at, { json });
    expect(await update({ name: null, config: { type: 'cloud' } })).toEqual(made);
    expect(
      await update({ config: { type: 'cloud', networking: { type: 'limited', allow_package_managers: true } } }),
    ).toMatchObject({
      config: { networking: { ...networking, allow_package_managers: true } },
    });
    expect(await update({ metadata: { a: '', b: null, c: '3' }, description: '' })).toMatchObject({
      metadata: { c: '3' },
      description: '',
    });
    expect(await failure(at, { json: { config: { type: 'self_hosted' } } })).toMatchObject({
      status: 400,
      code: 'invalid_config_type_change',
    });
    expect(await failure(at, { json: { metadata: { ['k'.repeat(65)]: 'v' } } })).toMatchObject({
      status: 400,
      code: 'invalid_metadata',
    });
    expect(await failure('/v1/environments', { json: { name: made.name } })).toMatchObject({
      status: 409,
      type: 'conflict_error',
    });
    await client.json(`${at}/archive`, { method: 'POST' });
    expect(await failure(at, { json: { name: 'x' } })).toMatchObject({ status: 400, code: 'environment_archived' });
    const agent = await newAgent();
    expect(await failure('/v1/sessions', { json: { agent: agent.id, environment_id: made.id } })).toMatchObject({
      status: 400,
      code: 'environment_archived',
    });
    expect(await failure(`/v1/environments/${environment.id}`, { method: 'DELETE' })).toMatchObject({ status: 409 });
    expect(await client.json(at, { method: 'DELETE' })).toEqual({ id: made.id, type: 'environment_deleted' });
  }, 20_000);
});

describe('the sandbox settings of an environment', () => {
  it('are taken in parts, answered whole, kept by an update, and reset by null', async () => {
    const made = await newEnvironment({ config: { type: 'cloud', x_sandbox: { pool_size: 3, image: 'python:3.13' } } });
    expect(made.config).toHaveProperty('x_sandbox', { ...DEFAULT_SANDBOX, pool_size: 3, image: 'python:3.13' });
    const at = `/v1/environments/${made.id}`;
    const update = (x_sandbox: object | null): Promise<Environment> =>
      client.json(at, { json: { config: { type: 'cloud', x_sandbox } } });
    expect(await update({})).toEqual(made);
    expect(await client.json(at, { json: {} })).toEqual(made);
    expect(await update({ idle_seconds: 60 })).toMatchObject({
      config: { x_sandbox: { pool_size: 3, idle_seconds: 60 } },
    });
    expect((await update(null)).config).toHaveProperty('x_sandbox', DEFAULT_SANDBOX);
    expect(await client.json<Environment>(at)).toMatchObject({ config: { x_sandbox: DEFAULT_SANDBOX } });
  }, 20_000);

  it.each<[string, object]>([
    ['config.x_sandbox.pool_size: Too big: expected number to be <=200', { pool_size: 201 }],
    [
      'config.x_sandbox.node_selector: must have at most 16 labels',
      { node_selector: Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`label-${n}`, 'x'])) },
    ],
    ['must be a Kubernetes label key', { node_selector: { 'a b': 'x' } }],
    ['config.x_sandbox.image: must be an image reference', { image: 'python 3.13' }],
    ['config.x_sandbox: Unrecognized key: "privileged"', { privileged: true }],
  ])('are refused with: %s', async (message, x_sandbox) => {
    const json = { name: 'refused', config: { type: 'cloud', x_sandbox } };
    for (const path of ['/v1/environments', `/v1/environments/${environment.id}`]) {
      const answer = await failure(path, { json });
      expect(answer).toMatchObject({ status: 400, type: 'invalid_request_error' });
      expect(answer.message).toContain(message);
    }
  });
});

describe('sandboxes', () => {
  const list = async (query = ''): Promise<readonly Sandbox[]> =>
    (await client.json<Page<Sandbox>>(`/v1/x/sandboxes?limit=100${query}`)).data;
  let real: Sandbox;
  let pooled: Environment;
  const other = 'wrkspc_elsewhere';
  /** As a sandbox service on a cluster records it. */
  const record = (columns: Readonly<Record<string, unknown>> & { readonly id: string }): Promise<unknown> => {
    const row: Record<string, unknown> = {
      workspace_id: 'wrkspc_default',
      session_id: `sesn_${columns.id}`,
      environment_id: pooled.id,
      environment: '{}',
      provider: 'kubernetes',
      // Nobody here takes it over.
      owner: 'another replica',
      owner_expires_at: new Date(Date.now() + 3_600_000),
      ...columns,
    };
    const given = Object.keys(row);
    return platform.query(
      `insert into sandboxes (${given.join(', ')}) values (${given.map((_, n) => `$${n + 1}`).join(', ')})`,
      Object.values(row),
    );
  };
  beforeAll(async () => {
    pooled = await newEnvironment({ config: { type: 'cloud', x_sandbox: { pool_size: 5 } } });
    const session = await client.session();
    await send(session, userMessage('RUN[true]'));
    await client.untilIdle(session, 30_000);
    const [found] = await list(`&session_id=${session}`);
    if (found === undefined) throw new Error('The session has no sandbox.');
    real = found;
  }, 60_000);

  it('are shown with each key, of every provider and in every state, and why they are not ready', async () => {
    sandboxResource.parse(real);
    expect(real).toMatchObject({ status: 'ready', provider: 'local', reason: null, pod: null, node: null });
    expect(await client.json(`/v1/x/sandboxes/${real.id}`)).toEqual(real);
    const since = new Date().toISOString();
    await record({
      id: 'sbx_stuck',
      status: 'starting',
      launch: 'cold',
      namespace: 'holdfast-default',
      reason: { code: 'unschedulable', message: '0/2 nodes are available', since },
    });
    await record({
      id: 'sbx_warm',
      status: 'ready',
      launch: 'warm',
      pod: 'pool-abc',
      node: 'node-1',
      claimed_at: since,
      ready_at: since,
    });
    await record({ id: 'sbx_old', status: 'ready', claimed_at: new Date(Date.now() - 61_000) });
    await record({ id: 'sbx_failed', status: 'failed', reason: { code: null, message: 'no room on the disk', since } });
    await record({ id: 'sbx_gone', status: 'destroyed', claimed_at: since });
    for (const one of await list()) sandboxResource.parse(one);
    expect(await client.json('/v1/x/sandboxes/sbx_stuck')).toMatchObject({
      reason: {
        code: 'unschedulable',
        message: '0/2 nodes are available',
        hint: SANDBOX_HINTS.unschedulable,
        since,
      },
    });
    expect(await client.json('/v1/x/sandboxes/sbx_failed')).toMatchObject({ reason: { code: null, hint: null } });
    expect(await client.json('/v1/x/sandboxes/sbx_warm')).toMatchObject({ pod: 'pool-abc', node: 'node-1' });
  });

  it('are listed newest first, by session, environment and state, and the destroyed where they are asked for', async () => {
    const ids = async (query: string): Promise<string[]> => (await list(query)).map(({ id }) => id);
    const alive = ['sbx_failed', 'sbx_old', 'sbx_warm', 'sbx_stuck'];
    expect(await ids('')).toEqual([...alive, real.id]);
    expect(await ids(`&environment_id=${pooled.id}`)).toEqual(alive);
    expect(await ids('&session_id=sesn_sbx_warm')).toEqual(['sbx_warm']);
    expect(await ids('&status[]=starting&status[]=failed')).toEqual(['sbx_failed', 'sbx_stuck']);
    expect(await ids('&status[]=destroyed')).toEqual(['sbx_gone']);
    expect(await ids('&status[]=destroyed&status[]=starting')).toEqual(['sbx_gone', 'sbx_stuck']);
    const walked: string[] = [];
    for (let page: string | null = ''; page !== null; ) {
      const answer: Page<Sandbox> = await client.json(`/v1/x/sandboxes?limit=2${page === '' ? '' : `&page=${page}`}`);
      walked.push(...answer.data.map(({ id }) => id));
      page = answer.next_page;
    }
    expect(walked).toEqual([...alive, real.id]);
    expect(await failure('/v1/x/sandboxes?status[]=lost')).toMatchObject({ status: 400 });
  });

  it('have a timeline', async () => {
    const { data } = timelinePage.parse(await client.json(`/v1/x/sandboxes/${real.id}/timeline`));
    expect(data.map(({ type }) => type)).toEqual(['sandbox.requested', 'sandbox.ready', 'sandbox.checkpointed']);
    expect(timelinePage.parse(await client.json(`/v1/x/sandboxes/${real.id}/timeline?limit=1`)).next_after).toBe(1);
  });

  it('are counted by pool: those that are asked for, and those that are still there', async () => {
    const pools = async (): Promise<Record<string, SandboxPool>> => {
      const { data } = await client.json<Page<SandboxPool>>('/v1/x/sandbox_pools');
      return Object.fromEntries(data.map((pool) => [pool.environment_id, sandboxPoolResource.parse(pool)]));
    };
    expect((await pools())[pooled.id]).toEqual({
      type: 'sandbox_pool',
      environment_id: pooled.id,
      environment_name: pooled.name,
      size: 5,
      ready: 0,
      claims_per_minute: 2,
      waiting: 1,
      reason: null,
      observed_at: null,
    });
    const reason = { code: 'quota-exceeded', message: 'pods: 20/20' };
    const observe = (environmentId: string, ready: number) =>
      platform.query(
        'insert into sandbox_pools (environment_id, workspace_id, size, ready, reason) values ($1, $2, 5, $3, $4)',
        [environmentId, 'wrkspc_default', ready, reason],
      );
    const retired = await newEnvironment({ config: { type: 'cloud', x_sandbox: { pool_size: 2 } } });
    await client.json(`/v1/environments/${retired.id}/archive`, { method: 'POST' });
    expect(await pools()).not.toHaveProperty(retired.id);
    await observe(retired.id, 1);
    await observe(pooled.id, 4);
    expect(await pools()).toMatchObject({
      [retired.id]: { size: 0, ready: 1 },
      [pooled.id]: { size: 5, ready: 4, reason, observed_at: expect.stringMatching(/^20.+Z$/) },
    });
    expect(await pools()).not.toHaveProperty(environment.id);
  });

  it('of another workspace do not exist', async () => {
    const foreign = new TestClient({ apiUrl: platform.apiUrl, apiKey: await platform.secondWorkspace() });
    await record({ id: 'sbx_theirs', status: 'ready', workspace_id: other });
    for (const id of [real.id, 'sbx_theirs', 'sbx_none'])
      for (const path of [`/v1/x/sandboxes/${id}`, `/v1/x/sandboxes/${id}/timeline`])
        expect((await foreign.api(path)).status).toBe(404);
    expect((await failure('/v1/x/sandboxes/sbx_theirs')).status).toBe(404);
    for (const path of ['/v1/x/sandboxes', `/v1/x/sandboxes?session_id=${real.session_id}`, '/v1/x/sandbox_pools'])
      expect(await foreign.json(path)).toMatchObject({ data: [] });
  });
});

describe('what is known and not built', () => {
  const toolset = (config: object) => ({ tools: [{ type: 'agent_toolset_20260401', configs: [config] }] });
  it.each<[string, string, object]>([
    ['web_search', '/v1/agents', toolset({ name: 'web_search', enabled: true })],
    ['url_sources', '/v1/agents', toolset({ name: 'web_fetch', url_sources: { type: 'all' } })],
    ['auto', '/v1/agents', toolset({ name: 'bash', permission_policy: { type: 'auto' } })],
    ['skills', '/v1/agents', { skills: [{ type: 'anthropic', skill_id: 'xlsx' }] }],
    ['multiagent', '/v1/agents', { multiagent: { type: 'coordinator', agents: ['self'] } }],
    ['aws_role', '/v1/agents', { execution_identity: { type: 'aws_role', role_arn: 'arn' } }],
    ['inference_geo', '/v1/agents', { model: { id: 'demo', inference_geo: 'eu' } }],
    ['speed "fast"', '/v1/agents', { model: { id: 'demo', speed: 'fast' } }],
    ['harness', '/v1/agents', { harness: { type: 'opencode' } }],
    ['packages', '/v1/environments', { config: { type: 'cloud', packages: { pip: ['x'] } } }],
    ['account', '/v1/environments', { scope: 'account' }],
    ['budget', '/v1/sessions', { budget: { type: 'limit', max_list_cost: { amount: '1', currency: 'USD' } } }],
    ['resources', '/v1/sessions', { resources: [{ type: 'github_repository', url: 'https://github.com/a/b' }] }],
    ['vault_ids', '/v1/sessions', { vault_ids: ['vlt_1'] }],
    ['user.define_outcome', '/v1/sessions', { initial_events: [{ type: 'user.define_outcome', description: 'x' }] }],
    [
      'file',
      '/v1/sessions',
      {
        initial_events: [
          { type: 'user.message', content: [{ type: 'image', source: { type: 'file', file_id: 'f' } }] },
        ],
      },
    ],
    [
      'search_result',
      '/v1/sessions',
      { initial_events: [{ type: 'user.message', content: [{ type: 'search_result' }] }] },
    ],
  ])('is a 400 that names it: %s', async (name, path, rest) => {
    const required = {
      '/v1/agents': { model: 'demo' },
      '/v1/environments': {},
      '/v1/sessions': { agent: 'agent_1', environment_id: 'env_1' },
    }[path];
    const answer = await failure(path, {
      json: { ...(path === '/v1/sessions' ? {} : { name: 'n' }), ...required, ...rest },
    });
    expect(answer).toMatchObject({ status: 400, type: 'invalid_request_error' });
    expect(answer.message).toContain(name);
  });

  it.each([
    ['vaults', 'GET', '/v1/vaults'],
    ['skills', 'GET', '/v1/skills/skill_1/versions'],
    ['memory stores', 'DELETE', '/v1/memory_stores/memstore_1'],
    ['deployments', 'POST', '/v1/deployments/depl_1/run'],
    ['archiving a thread', 'POST', '/v1/sessions/sesn_1/threads/sthr_1/archive'],
    ['the Messages API', 'POST', '/v1/messages'],
  ])('is a 400 that names it, also as a route: %s', async (name, method, path) => {
    const answer = await failure(path, { method, ...(method === 'POST' ? { body: '--x\r\nno json' } : {}) });
    expect(answer).toMatchObject({ status: 400, code: 'request.not-supported' });
    expect(answer.message).toContain(name);
    expect(JSON.stringify(await client.json('/v1/x/capabilities'))).toContain(name);
    expect((await failure(path, { method, headers: { 'x-api-key': 'hf_wrong' } })).status).toBe(401);
  });

  it('is a 400 that names it, in events and models', async () => {
    const { id } = await newSession();
    const events = `/v1/sessions/${id}/events`;
    const refused = async (...list: object[]): Promise<string> => {
      const answer = await failure(events, { json: { events: list } });
      expect(answer.status).toBe(400);
      return answer.message;
    };
    expect(await refused({ type: 'user.define_outcome' })).toMatch(/user\.define_outcome/);
    expect(await refused({ type: 'user.nonsense' })).toMatch(/user\.message/);
    expect(await refused({ ...userMessage('x'), nonsense: 1 })).toMatch(/nonsense/);
    expect(await refused({ type: 'user.message', content: [{ type: 'text', text: '' }] })).toMatch(/text/);
    const system = { type: 'system.message', content: [{ type: 'text', text: 'be brief' }] };
    expect(await refused(system)).toMatch(/must follow/);
    expect(await refused(system, userMessage('x'))).toMatch(/last/);
    expect(await refused(userMessage('x'), system, system)).toMatch(/at most one/);
    expect(await refused({ type: 'user.interrupt' }, system)).toMatch(/must follow/);
    expect(await failure('/v1/agents', { json: { name: 'x', model: 'gpt-none' } })).toMatchObject({
      status: 400,
      message: expect.stringContaining('demo'),
    });
    expect(
      (await failure(events, { json: { events: [{ type: 'user.interrupt', session_thread_id: 'sthr_other' }] } }))
        .status,
    ).toBe(404);
    expect((await send(id, { type: 'user.interrupt', session_thread_id: primaryThreadId(id) })).data).toHaveLength(1);
    expect(types(await client.events(id))).toEqual(['user.interrupt']);
  });
});

describe('lists', () => {
  it('of sessions are walked forwards and back, filtered, and bound to their order', async () => {
    const agent = await newAgent();
    const made: string[] = [];
    for (let n = 0; n < 7; n++) {
      const session = await client.json<Session>('/v1/sessions', {
        json: { agent: agent.id, environment_id: environment.id, title: `${n}` },
      });
      made.unshift(session.id);
    }
    const list = (query: string): Promise<Page<Session>> => client.json(`/v1/sessions?agent_id=${agent.id}&${query}`);
    const walk = async (first: Page<Session>, way: 'next_page' | 'prev_page', rest: string): Promise<string[][]> => {
      const pages = [first.data.map(({ id }) => id)];
      for (let page = first[way]; page != null; ) {
        const answer: Page<Session> = await list(`page=${page}&${rest}`);
        pages.push(answer.data.map(({ id }) => id));
        if (pages.length > 10) throw new Error('a walk without end');
        page = answer[way];
        if (page == null) expect(answer[way === 'next_page' ? 'prev_page' : 'next_page']).not.toBeNull();
      }
      return pages;
    };
    const first = await list('limit=3');
    expect(first.prev_page).toBeNull();
    expect(await walk(first, 'next_page', 'limit=3')).toEqual([made.slice(0, 3), made.slice(3, 6), made.slice(6)]);
    const last = await list(`limit=3&page=${(await list(`limit=3&page=${first.next_page}`)).next_page}`);
    expect(last.next_page).toBeNull();
    expect(await walk(last, 'prev_page', 'limit=3')).toEqual([made.slice(6), made.slice(3, 6), made.slice(0, 3)]);
    expect((await walk(await list('order=asc&limit=5'), 'next_page', 'order=asc&limit=5')).flat()).toEqual(
      [...made].reverse(),
    );
    expect((await failure(`/v1/sessions?order=asc&page=${first.next_page}`)).message).toMatch(/order=desc/);
    expect((await failure(`/v1/agents?page=${first.next_page}`)).message).toMatch(/another list/);

    const [, second] = (await list('limit=2')).data;
    const from = second?.created_at ?? '';
    expect((await list(`created_at[gte]=${from}`)).data.map(({ id }) => id)).toEqual(made.slice(0, 2));
    expect((await list(`created_at%5Bgt%5D=${from}`)).data.map(({ id }) => id)).toEqual(made.slice(0, 1));
    expect((await list(`created_at[lt]=${from}`)).data).toHaveLength(5);
    expect((await list(`created_at[lte]=${from}`)).data).toHaveLength(6);
    await client.json(`/v1/sessions/${made[0]}/archive`, { method: 'POST' });
    expect((await list('')).data).toHaveLength(6);
    expect((await list('include_archived=true')).data).toHaveLength(7);
    expect((await list('statuses[]=terminated')).data.map(({ id }) => id)).toEqual(made.slice(0, 1));
    expect((await list('statuses=idle&statuses=terminated')).data).toHaveLength(7);
    expect((await list('statuses%5B%5D=running')).data).toEqual([]);
    expect((await list('agent_version=2')).data).toEqual([]);
  }, 30_000);

  it('of events have each once, also those that wait, and while they are taken up', async () => {
    const { id } = await newSession('SLOW[25]');
    await send(id, ...Array.from({ length: 5 }, (_, n) => userMessage(`waits ${n}`)));
    const at = `/v1/sessions/${id}/events`;
    const messages = (page: Page<WireEvent>): WireEvent[] => page.data.filter(({ type }) => type === 'user.message');
    const waiting = await client.json<Page<WireEvent>>(`${at}?types[]=user.message`);
    const waits = messages(waiting).map((event) => event.processed_at === null);
    expect(waits).toEqual([false, true, true, true, true, true]);
    const latest = await client.json<Page<WireEvent>>(`${at}?order=desc&limit=6`);
    expect(messages(latest).map(({ id: one }) => one)).toEqual(
      messages(waiting)
        .map(({ id: one }) => one)
        .reverse()
        .slice(0, 5),
    );
    // Two pages of the walk are read while the messages wait, the rest when all were answered.
    const ids: string[] = [];
    let page = await client.json<Page<WireEvent>>(`${at}?limit=2`);
    for (let reads = 0; ; reads++) {
      ids.push(...page.data.map((event) => event.id));
      if (page.next_page === null) break;
      const { next_page: next } = page;
      if (page.data.some((event) => event.processed_at === null)) await client.untilIdle(id, 30_000);
      if (reads > 100) throw new Error('a walk without end');
      page = await client.json(`${at}?limit=2&page=${next}`);
    }
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids.filter((one) => messages(waiting).some((message) => message.id === one))).toHaveLength(6);
    const all = await client.events(id);
    const after = await client.json<Page<WireEvent>>(`${at}?limit=1000&page=${all[4]?.id}`);
    expect(after.data.map((event) => event.id)).toEqual(all.slice(5).map((event) => event.id));
    const stamp = all.at(-1)?.processed_at ?? '';
    expect((await client.json<Page<WireEvent>>(`${at}?created_at[lte]=${stamp}&order=desc&limit=1`)).data[0]?.id).toBe(
      all.at(-1)?.id,
    );
    expect((await client.json<Page<WireEvent>>(`${at}?created_at[gt]=${stamp}`)).data).toEqual([]);
  }, 60_000);

  it('of models have the other shape, and are walked by ids', async () => {
    expect(await client.json('/v1/models?limit=1')).toMatchObject({
      has_more: true,
      first_id: 'demo',
      last_id: 'demo',
    });
    expect(await client.json('/v1/models?after_id=demo-thinking')).toEqual({
      data: [],
      has_more: false,
      first_id: null,
      last_id: null,
    });
    expect((await failure('/v1/models?after_id=none')).status).toBe(400);
    expect((await failure('/v1/models/a%2Fb')).status).toBe(404);
  });
});

describe('a session', () => {
  it('tells a turn in the contract’s order, a message twice and idle last', async () => {
    const { id } = await newSession();
    const stream = client.frames(`/v1/sessions/${id}/events/stream?event_deltas[]=agent.message`, isIdle);
    await sleep(200);
    const { data } = await send(id, userMessage('hello'), {
      type: 'system.message',
      content: [{ type: 'text', text: 'be brief' }],
    });
    expect(data).toMatchObject([
      { type: 'user.message', processed_at: null },
      { type: 'system.message', processed_at: null },
    ]);
    const frames = await stream;
    const order = types(frames.map(({ data: event }) => event));
    expect(order.filter((type) => type !== 'event_delta')).toEqual([
      'user.message',
      'system.message',
      'user.message',
      'system.message',
      'session.status_running',
      'span.model_request_start',
      'event_start',
      'agent.message',
      'span.model_request_end',
      'session.status_idle',
    ]);
    expect(frames.every(({ event, data: { type } }) => event === type)).toBe(true);
    for (const { id: version, data: event } of frames) {
      expect(version === null).toBe(event.type.startsWith('event_'));
      if (version !== null) sessionEventResource.parse(event);
    }
    expect(
      frames.filter(({ data: event }) => event.id === data[0]?.id).map(({ data: event }) => typeof event.processed_at),
    ).toEqual(['object', 'string']);
    expect(frames.at(-1)?.data).toMatchObject({ stop_reason: { type: 'end_turn' }, stop_details: null });
  }, 30_000);

  it('refuses while it runs what needs it idle', async () => {
    const { id } = await newSession('SLOW[40]');
    const at = `/v1/sessions/${id}`;
    for (const [path, options] of [
      [`${at}/archive`, { method: 'POST' }],
      [at, { method: 'DELETE' }],
      [at, { json: { title: 'x' } }],
      [at, { json: { agent: { tools: [] } } }],
    ] as [string, RequestOptions][]) {
      expect(await failure(path, options)).toMatchObject({ status: 400, code: 'session.running' });
    }
    // Interrupt and a message at once: another direction, without a stop between.
    await send(id, { type: 'user.interrupt' }, userMessage('instead'));
    const events = await client.untilIdle(id, 20_000);
    expect(types(events)).toEqual([
      'user.message',
      'session.status_running',
      'span.model_request_start',
      'user.interrupt',
      'span.model_request_end',
      'user.message',
      'span.model_request_start',
      'agent.message',
      'span.model_request_end',
      'session.status_idle',
    ]);
    expect(JSON.stringify(events.at(-3))).toMatch(/instead/);
    expect(await client.json(at, { json: { title: 't', metadata: { a: '1', b: '2' } } })).toMatchObject({ title: 't' });
    expect(await client.json(at, { json: { metadata: { a: null, c: '' } } })).toMatchObject({
      title: 't',
      metadata: { b: '2', c: '' },
    });
    expect(await client.json(at, { json: { title: null } })).toMatchObject({ title: null });
  }, 40_000);

  it('takes an answer again when it is the same, and no other', async () => {
    const { id } = await newSession('RUN[echo hi]');
    const asked = await client.untilIdle(id, 20_000);
    const call = asked.find(({ type }) => type === 'agent.tool_use');
    expect(call).toMatchObject({ evaluated_permission: 'ask', evaluation: { type: 'always_ask' } });
    expect(asked.at(-1)).toMatchObject({ stop_reason: { type: 'requires_action', event_ids: [call?.id] } });
    const denial = { type: 'user.tool_confirmation', tool_use_id: call?.id, result: 'deny', deny_message: 'not now' };
    const first = await send(id, denial);
    expect(await send(id, denial)).toEqual(first);
    const contrary = await failure(`/v1/sessions/${id}/events`, {
      json: { events: [{ ...denial, deny_message: 'never' }] },
    });
    expect(contrary).toMatchObject({ status: 400, code: 'session.call-answered' });
    const done = await client.untilIdle(id, 20_000);
    expect(done.find(({ type }) => type === 'agent.tool_result')).toMatchObject({
      is_error: true,
      tool_use_id: call?.id,
    });
    expect(JSON.stringify(done)).toMatch(/not now/);
    expect(types(done).filter((type) => type === 'user.tool_confirmation')).toHaveLength(1);
  }, 40_000);

  it('that waits for the client is let go by an interrupt: the call is closed, the model is not asked', async () => {
    for (const [prompt, closed] of [
      ['RUN[true]', 'agent.tool_result'],
      ['ASK[lookup]', 'user.custom_tool_result'],
    ] as const) {
      const { id } = await newSession(prompt);
      const before = await client.untilIdle(id, 20_000);
      await send(id, { type: 'user.interrupt' });
      const after = (await client.events(id)).slice(before.length);
      expect(types(after)).toEqual(['user.interrupt', closed, 'session.status_idle']);
      expect(after[1]).toMatchObject({ is_error: true });
      expect(after[2]).toMatchObject({ stop_reason: { type: 'end_turn' } });
    }
  }, 40_000);

  it('that is archived or deleted ends its streams, and takes nothing more', async () => {
    const { id } = await newSession('hello');
    await client.untilIdle(id, 20_000);
    const stream = client.api(`/v1/sessions/${id}/events/stream`).then((response) => response.text());
    await sleep(200);
    expect(await client.json(`/v1/sessions/${id}/archive`, { method: 'POST' })).toMatchObject({ status: 'terminated' });
    expect(await stream).toMatch(/event: session\.status_terminated\n.*\n\n$/);
    for (const [path, options] of [
      [`/v1/sessions/${id}/events`, { json: { events: [userMessage('x')] } }],
      [`/v1/sessions/${id}/events`, { json: { events: [userMessage('x'.repeat(100_000))] } }],
      [`/v1/sessions/${id}`, { json: { title: 'x' } }],
    ] as [string, RequestOptions][]) {
      expect(await failure(path, options)).toMatchObject({ status: 400, code: 'session.archived' });
    }
    const replay = await (await client.api(`/v1/sessions/${id}/events/stream?after=0`)).text();
    expect(replay).toMatch(/^id: \d+\nevent: user\.message\n/);
    const other = await newSession();
    const second = client.api(`/v1/sessions/${other.id}/events/stream`).then((response) => response.text());
    await sleep(200);
    expect(await client.json(`/v1/sessions/${other.id}`, { method: 'DELETE' })).toEqual({
      id: other.id,
      type: 'session_deleted',
    });
    expect(await second).toMatch(/event: session\.deleted\n.*\n\n$/);
    expect((await failure(`/v1/sessions/${other.id}`)).status).toBe(404);
  }, 40_000);
});

describe('a repeated request', () => {
  it('with an Idempotency-Key is stored once, however many come at once', async () => {
    const { id } = await newSession();
    const agent = await newAgent();
    const twenty = async (path: string, json: object, key: string): Promise<string[]> => {
      const post = () => client.api(path, { json, headers: { 'idempotency-key': key } });
      const answers = await Promise.all(Array.from({ length: 20 }, post));
      expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 20 }, () => 200));
      return [...new Set(await Promise.all(answers.map((answer) => answer.text())))];
    };
    expect(await twenty(`/v1/sessions/${id}/events`, { events: [userMessage('once')] }, 'send')).toHaveLength(1);
    const sessions = await twenty('/v1/sessions', { agent: agent.id, environment_id: environment.id }, 'create');
    expect(new Set(sessions.map((text) => (JSON.parse(text) as Session).id)).size).toBe(1);
    expect(await twenty('/v1/agents', { name: 'one', model: 'demo' }, 'agent')).toHaveLength(1);
    expect(await twenty(`/v1/agents/${agent.id}`, { description: 'once' }, 'update')).toHaveLength(1);
    const list = await client.json<Page<WireEvent>>(`/v1/sessions/${id}/events?types[]=user.message`);
    expect(list.data).toHaveLength(1);
    const makeKey = { json: { name: 'once' }, headers: { 'idempotency-key': 'api key' } };
    const made = await client.json<{ id: string }>('/v1/x/api_keys', makeKey);
    const again = await failure('/v1/x/api_keys', makeKey);
    expect(again).toMatchObject({ status: 409, code: 'credential.made-before' });
    expect(again.message).toContain(made.id);
    const reused = await failure('/v1/agents', {
      json: { name: 'two', model: 'demo' },
      headers: { 'idempotency-key': 'agent' },
    });
    expect(reused).toMatchObject({ status: 409, type: 'conflict_error', code: 'idempotency.key-reused' });
    expect(reused.headers.get('x-should-retry')).toBe('false');
  }, 40_000);

  it('with a retry count is stored once, a first attempt anew', async () => {
    const { id } = await newSession();
    const post = (attempt: number): Promise<unknown> =>
      client.json(`/v1/sessions/${id}/events`, {
        json: { events: [userMessage('again')] },
        headers: { 'x-stainless-retry-count': String(attempt) },
      });
    const first = await post(0);
    expect([await post(1), await post(2)]).toEqual([first, first]);
    const second = await post(0);
    expect(second).not.toEqual(first);
    expect(await post(1)).toEqual(second);
    await client.untilIdle(id, 20_000);
    expect(types(await client.events(id)).filter((type) => type === 'user.message')).toHaveLength(2);
    const remove = (attempt: number): Promise<unknown> =>
      client.json(`/v1/sessions/${id}`, { method: 'DELETE', headers: { 'x-stainless-retry-count': String(attempt) } });
    expect(await remove(0)).toEqual({ id, type: 'session_deleted' });
    expect(await remove(1)).toEqual({ id, type: 'session_deleted' });
  }, 40_000);
});

describe('a command', () => {
  it('is not carried out once its caller was told that it failed', async () => {
    const session = platform.pid('session');
    process.kill(session, 'SIGSTOP');
    try {
      const late = await failure('/v1/agents', { json: { name: 'late', model: 'demo' } });
      expect(late).toMatchObject({ status: 503, type: 'overloaded_error', code: 'bus.timeout' });
      expect([late.headers.get('x-should-retry'), late.headers.get('retry-after')]).toEqual(['true', '1']);
    } finally {
      process.kill(session, 'SIGCONT');
    }
    // What is sent now is answered after what waited.
    await newAgent();
    await sleep(500);
    const { data } = await client.json<Page<Agent>>('/v1/agents?limit=100');
    expect(data.filter(({ name }) => name === 'late')).toEqual([]);
  }, 60_000);
});

describe('content', () => {
  const image = (bytes: number) => ({
    type: 'image' as const,
    source: { type: 'base64' as const, media_type: 'image/png', data: randomBytes(bytes).toString('base64') },
  });

  it('of many megabytes comes back as it was sent, from the answer, the list and the stream', async () => {
    const { id } = await newSession();
    const content = [image(5_000_000), { type: 'text' as const, text: 'what is this?' }, image(40_000), image(60_000)];
    const sent = await send(id, { type: 'user.message', content });
    expect(sent.data[0]?.['content']).toEqual(content);
    const events = await client.untilIdle(id, 30_000);
    expect(events.find(({ type }) => type === 'user.message')?.content).toEqual(content);
    expect(events.at(-3)?.type).toBe('agent.message');
    const frames = await client.frames(`/v1/sessions/${id}/events/stream?after=0`, isIdle);
    expect(frames.filter(({ event }) => event === 'user.message').map(({ data }) => data.content)).toEqual([
      content,
      content,
    ]);
  }, 60_000);

  it('makes a page shorter rather than the gateway larger', async () => {
    const { id } = await newSession('SLOW[1]');
    for (let n = 0; n < 4; n++) await send(id, { type: 'user.message', content: [image(3_000_000)] });
    await client.untilIdle(id, 60_000);
    const pages: number[] = [];
    for (let page: string | null = ''; page !== null; ) {
      const answer: Page<WireEvent> = await client.json(
        `/v1/sessions/${id}/events?limit=1000${page === '' ? '' : `&page=${page}`}`,
      );
      pages.push(JSON.stringify(answer).length);
      page = answer.next_page;
    }
    expect(pages.length).toBeGreaterThan(1);
    expect(Math.max(...pages)).toBeLessThan(13_000_000);
    // Each of the five messages twice: as it was accepted, and as it was taken up.
    const isWhole = (all: readonly Frame[]): boolean =>
      all.filter(({ event }) => event === 'user.message').length === 10 && isIdle(all);
    const frames = await client.frames(`/v1/sessions/${id}/events/stream?after=0`, isWhole);
    expect(await client.events(id)).toEqual(
      frames.map(({ data }) => data).filter((event) => event.processed_at !== null),
    );
  }, 90_000);
});

describe('a stream', () => {
  it('begins at once, is pinged, and begins after the header’s cursor rather than the address’s', async () => {
    const { id } = await newSession('hello');
    await client.untilIdle(id, 20_000);
    const all = await client.frames(`/v1/sessions/${id}/events/stream?after=0`, isIdle);
    const [, second] = all;
    const rest = await client.frames(`/v1/sessions/${id}/events/stream?after=0`, isIdle, {
      'last-event-id': String(second?.id),
    });
    expect(rest).toEqual(all.slice(2));
    const thread = await client.frames(`/v1/sessions/${id}/threads/${primaryThreadId(id)}/stream?after=0`, isIdle);
    expect(thread).toEqual(all);
    const controller = new AbortController();
    const response = await client.api(`/v1/sessions/${id}/events/stream`, { signal: controller.signal });
    expect(response.headers.get('content-type')).toMatch(/^text\/event-stream/);
    expect(response.headers.get('cache-control')).toMatch(/no-cache/);
    expect(response.headers.get('request-id')).toMatch(/^req_/);
    expect(response.headers.get('anthropic-workspace-id')).toBe('wrkspc_default');
    const first = (await response.body?.getReader().read()) as { value?: Uint8Array } | undefined;
    expect(Buffer.from(first?.value ?? []).toString()).toBe('event: ping\ndata: {"type":"ping"}\n\n');
    controller.abort();
    expect((await client.api(`/v1/sessions/${id}/events/stream`, { method: 'HEAD' })).status).toBe(404);
  }, 30_000);

  it('ends with an error when the gateway drains, not as if the session were over', async () => {
    const { id } = await newSession('SLOW[50]');
    const stream = client.api(`/v1/sessions/${id}/events/stream`).then((response) => response.text());
    await sleep(500);
    process.kill(platform.pid('gateway-api'), 'SIGTERM');
    expect(await stream).toMatch(/event: error\ndata: {"type":"error","error":{"type":"overloaded_error".*}\n\n$/);
    for (const deadline = Date.now() + 30_000; Date.now() < deadline; await sleep(100)) {
      if ((await fetch(`${platform.apiUrl}/readyz`).catch(() => null))?.ok === true) break;
    }
    expect((await client.untilIdle(id, 30_000)).at(-1)).toMatchObject({ stop_reason: { type: 'end_turn' } });
  }, 90_000);
});

describe('the service', () => {
  it('without its database asks callers to come again, and goes on with it', async () => {
    platform.kill('postgres');
    const answers: string[] = [];
    for (const deadline = Date.now() + 30_000; Date.now() < deadline; await sleep(50)) {
      const response = await client.api('/v1/sessions');
      answers.push(`${response.status} ${response.headers.get('retry-after')}`);
      await response.arrayBuffer();
      if (response.ok && answers.includes('503 1')) break;
    }
    expect([...new Set(answers)].sort()).toEqual(['200 null', '503 1']);
  }, 60_000);

  it('says that it lives, what it waits for, and what it speaks', async () => {
    expect((await fetch(`${platform.apiUrl}/healthz`)).status).toBe(200);
    expect(await (await fetch(`${platform.apiUrl}/readyz`)).json()).toEqual({ ready: true, waiting: {} });
    const document = (await (await fetch(`${platform.apiUrl}/openapi.json`)).json()) as {
      openapi: string;
      paths: object;
    };
    expect(document.openapi).toBe('3.1.0');
    expect(Object.keys(document.paths)).toContain('/v1/sessions/{id}/events/stream');
  });
});
