import { setTimeout as sleep } from 'node:timers/promises';
import type { Sandbox, SandboxEnvironment } from '@holdfast/contracts';
import { createLogger } from '@holdfast/platform';
import { startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { CoreV1Api, KubeConfig } from '@kubernetes/client-node';
import { existingCluster, loadBed } from '../../../../../k8s/testbed/src/settings.ts';
import { Testbed } from '../../../../../k8s/testbed/src/testbed.ts';
import { Cluster } from '../cluster.ts';
import { namespaceName } from '../names.ts';

/** What a call came to. */
export interface Result {
  readonly text: string;
  readonly isError: boolean;
}
type SandboxEvent = { readonly type: string; readonly [field: string]: unknown };

export async function until<T>(what: string, look: () => T | null | Promise<T | null>, ms = 60_000): Promise<T> {
  for (const deadline = Date.now() + ms; ; await sleep(50)) {
    const found = await look();
    if (found !== null) return found;
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${what}`);
  }
}

/** One workspace of a platform, as a caller of its API sees it. */
export class Tenant {
  readonly client: TestClient;
  readonly #platform: TestPlatform;
  #agent: Promise<{ id: string }> | null = null;

  constructor(platform: TestPlatform, apiKey: string) {
    this.#platform = platform;
    this.client = new TestClient({ apiUrl: platform.apiUrl, apiKey });
  }

  async environment(name: string, sandbox: Partial<SandboxEnvironment>): Promise<string> {
    const json = { name, config: { type: 'cloud', x_sandbox: sandbox } };
    return (await this.client.json<{ id: string }>('/v1/environments', { json })).id;
  }
  async change(environmentId: string, sandbox: Partial<SandboxEnvironment>): Promise<void> {
    const json = { config: { type: 'cloud', x_sandbox: sandbox } };
    await this.client.json(`/v1/environments/${environmentId}`, { json });
  }

  /** A new session, whose agent has all tools. */
  async session(rest: object = {}): Promise<string> {
    this.#agent ??= this.client.json<{ id: string }>('/v1/agents', {
      json: { name: 'tools', model: 'demo', tools: [{ type: 'agent_toolset_20260401' }] },
    });
    const json = { agent_id: (await this.#agent).id, ...rest };
    return (await this.client.json<{ id: string }>('/api/sessions', { json })).id;
  }
  async say(session: string, text: string): Promise<void> {
    await this.client.json(`/v1/sessions/${session}/events`, { json: { events: [userMessage(text)] } });
  }
  async results(session: string): Promise<Result[]> {
    return (await this.client.events(session))
      .filter(({ type }) => type === 'agent.tool_result')
      .map((event) => ({
        text: event.content?.map(({ text }) => text).join('') ?? '',
        isError: event['is_error'] === true,
      }));
  }
  /** Lets the session run a command; its result. */
  async run(session: string, command: string, timeoutMs = 60_000): Promise<Result> {
    const before = (await this.results(session)).length;
    await this.say(session, `RUN[${command}]`);
    await this.client.untilIdle(session, timeoutMs);
    return (await this.results(session))[before] ?? { text: 'no result', isError: true };
  }
  /** Lets the session run a program of the runner's Node, with the global `WebSocket`. */
  async node(session: string, program: string, ...args: string[]): Promise<Result> {
    const encoded = Buffer.from(program).toString('base64');
    return this.run(
      session,
      `echo ${encoded} | base64 -d > /tmp/program.mjs && NODE_TLS_REJECT_UNAUTHORIZED=0 NODE_USE_ENV_PROXY= /opt/holdfast/node --no-warnings /tmp/program.mjs ${args.join(' ')}`,
    );
  }

  /** Null before it was asked for. */
  async sandboxIfAny(session: string): Promise<Sandbox | null> {
    return (await this.client.json<{ data: Sandbox[] }>(`/v1/x/sandboxes?session_id=${session}`)).data[0] ?? null;
  }
  async sandbox(session: string): Promise<Sandbox> {
    const sandbox = await this.sandboxIfAny(session);
    if (sandbox === null) throw new Error(`${session} has no sandbox`);
    return sandbox;
  }
  /** What the log says of the session's sandbox, the oldest first. */
  async sandboxEvents(session: string, type: string): Promise<SandboxEvent[]> {
    const { id } = await this.sandbox(session);
    const rows = await this.#platform.query(
      'select type, data from events where stream_id = $1 and type = $2 order by version',
      [`sandbox-${id}`, type],
    );
    return rows.map((row) => ({ type: String(row['type']), ...(row['data'] as object) }));
  }
}

/** The whole platform with its sandboxes on the cluster of the specs, and that cluster's administrator. */
export interface ClusteredPlatform extends TestPlatform {
  /** A workspace of its own, the one that every platform has. */
  readonly first: Tenant;
  readonly admin: Cluster;
  readonly core: CoreV1Api;
  /** As the administrator sees the cluster. */
  readonly config: KubeConfig;
  /** As the sandbox service sees it. */
  readonly serviceConfig: KubeConfig;
  readonly hub: { readonly host: string; readonly port: number };
  readonly installation: string;
  namespaceOf(workspaceId: string): string;
}

export async function startOnCluster(settings: Readonly<Record<string, string>>): Promise<ClusteredPlatform> {
  const kubeconfig = existingCluster() ?? loadBed().kubeconfig;
  const bed = existingCluster() === null ? await new Testbed().environment() : {};
  const platform = await startPlatform({ ...bed, ...settings });
  const config = new KubeConfig();
  config.loadFromFile(kubeconfig);
  const serviceConfig = new KubeConfig();
  serviceConfig.loadFromFile(platform.env['KUBECONFIG'] ?? kubeconfig);
  const admin = Cluster.connect({
    kubeconfig,
    fieldManager: 'holdfast-spec',
    logger: createLogger({ service: 'spec', instance: 'spec', level: 'silent' }),
  });
  const installation = String((await platform.query('select id from sandbox_installation'))[0]?.['id']);
  return {
    ...platform,
    databaseUrl: platform.databaseUrl,
    first: new Tenant(platform, platform.apiKey),
    admin,
    core: config.makeApiClient(CoreV1Api),
    config,
    serviceConfig,
    hub: { host: platform.env['HUB_HOST'] ?? '127.0.0.1', port: Number(platform.env['HUB_PORT']) },
    installation,
    namespaceOf: (workspaceId) => namespaceName(installation, workspaceId),
    stop: async () => {
      admin.close();
      await platform.stop();
    },
  };
}
