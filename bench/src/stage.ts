import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startPlatform, startPostgres } from '@holdfast/testing';
import { ApiClient } from './api-client.ts';
import { bedSettings } from './bed.ts';
import type { Arena, ClusterArena, Stage } from './bench.ts';
import { RawNamespace } from './raw-cluster.ts';
import { SandboxSession } from './sandbox-session.ts';
import { ScriptedModel } from './scripted-model.ts';

/** Starts what the benches ask for, once, and ends it. */
export class RunStage implements Stage {
  #arena: Promise<Arena> | null = null;
  #clusterArena: Promise<ClusterArena> | null = null;
  #postgres: Promise<{ dir: string; server: Awaited<ReturnType<typeof startPostgres>> }> | null = null;
  #end: Promise<void> | null = null;
  readonly #platforms: Record<string, () => number> = {};

  /** True once the end has begun: nothing is started any more. */
  get isOver(): boolean {
    return this.#end !== null;
  }

  async arena(): Promise<Arena> {
    this.#refuseWhenOver();
    this.#arena ??= this.#startArena('platform', {});
    return this.#arena;
  }

  async clusterArena(): Promise<ClusterArena> {
    this.#refuseWhenOver();
    this.#clusterArena ??= this.#startClusterArena();
    return this.#clusterArena;
  }

  async #startArena(name: string, settings: Readonly<Record<string, string>>): Promise<Arena> {
    const model = await ScriptedModel.start();
    try {
      const platform = await startPlatform({ LITELLM_GATEWAY_URL: model.url, ...settings });
      this.#platforms[name] = () => platform.pid('supervisor');
      return { platform, model, api: new ApiClient(platform) };
    } catch (error) {
      await model.close();
      throw error;
    }
  }

  async #startClusterArena(): Promise<ClusterArena> {
    const settings = await bedSettings();
    const arena = await this.#startArena('platform on the cluster', settings);
    try {
      // The first sandbox of all makes the namespace.
      const first = await SandboxSession.open(arena, null);
      await first.run();
      const [row] = await arena.platform.query('select namespace from sandboxes where session_id = $1', [first.id]);
      await first.end();
      const raw = await RawNamespace.open(settings['KUBECONFIG'] ?? '', String(row?.['namespace']));
      return { ...arena, raw };
    } catch (error) {
      await endArena(arena);
      throw error;
    }
  }

  async postgres(): Promise<string> {
    this.#refuseWhenOver();
    this.#postgres ??= (async () => {
      const dir = await mkdtemp(join(tmpdir(), 'holdfast-bench-'));
      return { dir, server: await startPostgres(dir) };
    })();
    const { server } = await this.#postgres;
    return `postgres://postgres@127.0.0.1:${server.port}/postgres`;
  }

  /** The processes whose trees are this run's own. */
  pids(): Record<string, number> {
    const platforms = Object.entries(this.#platforms).map(([name, pid]) => [name, pid()] as const);
    return { bench: process.pid, ...Object.fromEntries(platforms) };
  }

  /** Ends and removes everything, also what is still starting. */
  end(): Promise<void> {
    this.#end ??= this.#remove();
    return this.#end;
  }

  #refuseWhenOver(): void {
    if (this.isOver) throw new Error('the run was stopped');
  }

  async #remove(): Promise<void> {
    const [arena, clusterArena, postgres] = await Promise.allSettled([this.#arena, this.#clusterArena, this.#postgres]);
    if (arena.status === 'fulfilled' && arena.value !== null) await endArena(arena.value);
    if (clusterArena.status === 'fulfilled' && clusterArena.value !== null) {
      await clusterArena.value.raw.close();
      await endArena(clusterArena.value);
    }
    if (postgres.status === 'fulfilled' && postgres.value !== null) {
      const { dir, server } = postgres.value;
      const exited = new Promise<void>((resolve) => server.process.once('exit', () => resolve()));
      server.process.ref();
      server.process.kill('SIGINT');
      await exited;
      await rm(dir, { recursive: true, force: true });
    }
  }
}

async function endArena({ api, model, platform }: Arena): Promise<void> {
  await api.close();
  await model.close();
  await platform.stop();
}
