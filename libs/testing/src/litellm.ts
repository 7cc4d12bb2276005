import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from './postgres.ts';
import { pythonEnvironment } from './python.ts';

/** One entry of LiteLLM's `model_list`. */
export interface LiteLlmModel {
  readonly model_name: string;
  readonly litellm_params: {
    readonly model: string;
    readonly api_base: string;
    /** Its `/responses` is served by the upstream's `/chat/completions`. */
    readonly use_chat_completions_api?: boolean;
  };
  readonly model_info?: Readonly<Record<string, unknown>>;
}

export interface LiteLlmProxy {
  readonly url: string;
  readonly apiKey: string;
  /** Waits until it answers; starting takes ten to twenty seconds. */
  untilReady(): Promise<void>;
  stop(): Promise<void>;
}

const START_MS = 120_000;

/**
 * Starts a real LiteLLM proxy on loopback, without a database; installs it first where it has to. It retries nothing and cools nothing down, so that what a spec
 * counts is what the platform did; each stream ends with its cost.
 */
export async function startLiteLlm(models: readonly LiteLlmModel[]): Promise<LiteLlmProxy> {
  const python = await pythonEnvironment('litellm');
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-litellm-'));
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const apiKey = 'sk-litellm-spec';
  const config = {
    model_list: models.map((model) => ({ ...model, litellm_params: { ...model.litellm_params, api_key: 'none' } })),
    litellm_settings: { telemetry: false, include_cost_in_streaming_usage: true },
    router_settings: { num_retries: 0, disable_cooldowns: true },
    general_settings: { master_key: apiKey },
  };
  // JSON is YAML.
  await writeFile(join(dir, 'config.yaml'), JSON.stringify(config));
  const log = openSync(join(dir, 'log'), 'a');
  const start = 'from litellm import run_server; run_server()';
  const child = spawn(
    python,
    ['-c', start, '--config', join(dir, 'config.yaml'), '--host', '127.0.0.1', '--port', String(port)],
    {
      cwd: dir,
      stdio: ['ignore', log, log],
      env: {
        PATH: process.env.PATH ?? '',
        HOME: dir,
        // Its own list of prices: it would fetch the newest; and no .env of some parent folder.
        LITELLM_LOCAL_MODEL_COST_MAP: 'True',
        LITELLM_MODE: 'PRODUCTION',
      },
    },
  );
  closeSync(log);
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const stop = async (): Promise<void> => {
    const late = setTimeout(() => child.kill('SIGKILL'), 5_000);
    child.kill('SIGTERM');
    await exited;
    clearTimeout(late);
    await rm(dir, { recursive: true, force: true });
  };
  const untilReady = async (): Promise<void> => {
    for (const deadline = Date.now() + START_MS; ; await sleep(100)) {
      const answer = await fetch(`${url}/health/liveliness`).catch(() => null);
      if (answer?.ok === true) return;
      if (child.exitCode === null && child.signalCode === null && Date.now() < deadline) continue;
      throw new Error(`LiteLLM did not start:\n${readFileSync(join(dir, 'log'), 'utf8').slice(-3_000)}`);
    }
  };
  return { url, apiKey, untilReady, stop };
}
