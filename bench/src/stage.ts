import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startPlatform, startPostgres } from '@holdfast/testing';
import { ApiClient } from './api-client.ts';
import type { Arena, Stage } from './bench.ts';
import { ScriptedModel } from './scripted-model.ts';

/** Starts what the benches ask for, once, and ends it. */
export class RunStage implements Stage {
  #arena: Promise<Arena> | null = null;
  #postgres: Promise<{ dir: string; server: Awaited<ReturnType<typeof startPostgres>> }> | null = null;
  #end: Promise<void> | null = null;
  #pids: () => Record<string, number> = () => ({});

  /** True once the end has begun: nothing is started any more. */
  get isOver(): boolean {
    return this.#end !== null;
  }

  async arena(): Promise<Arena> {
    this.#refuseWhenOver();
    this.#arena ??= (async () => {
      const model = await ScriptedModel.start();
      const platform = await startPlatform({ LITELLM_GATEWAY_URL: model.url });
      this.#pids = () => ({ platform: platform.pid('supervisor') });
      return { platform, model, api: new ApiClient(platform) };
    })();
    return this.#arena;
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
    return { bench: process.pid, ...this.#pids() };
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
    const [arena, postgres] = await Promise.allSettled([this.#arena, this.#postgres]);
    if (arena.status === 'fulfilled' && arena.value !== null) {
      await arena.value.api.close();
      await arena.value.model.close();
      await arena.value.platform.stop();
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
