import { join } from 'node:path';
import type { HarnessProfile, NativeCall } from '@holdfast/runner';

/** What reaches for the network beside the model door, or acts for a user that sits before a screen. */
const OFF = [
  ...['apps', 'browser_use', 'computer_use', 'image_generation', 'plugins', 'skill_search', 'tool_suggest'],
  ...['goals', 'hooks', 'multi_agent', 'shell_snapshot', 'unbounded_connection_retries'],
];

/**
 * Codex behind its ACP adapter. The door is its only provider, which it speaks `responses` to, and it sandboxes nothing:
 * the session's sandbox does.
 */
export const profile: HarnessProfile = {
  command: (start, { folder, home, door }) => {
    const has = (...names: string[]): boolean =>
      names.some((name) => (start.tools[name] ?? start.tools['*'] ?? 'off') !== 'off');
    const config = {
      model: start.model,
      model_provider: 'door',
      model_context_window: start.contextTokens,
      ...(start.system === null ? {} : { developer_instructions: start.system }),
      approval_policy: 'never',
      sandbox_mode: 'danger-full-access',
      // What the environment's configuration sets reaches its tools, whatever the name.
      shell_environment_policy: { inherit: 'all', ignore_default_excludes: true },
      check_for_update_on_startup: false,
      analytics: { enabled: false },
      // The gateway would run it, and the door lets no such tool pass.
      web_search: 'disabled',
      features: {
        ...Object.fromEntries(OFF.map((name) => [name, false])),
        shell_tool: has('bash'),
        unified_exec: has('bash'),
        view_image: has('read'),
      },
      model_providers: {
        door: {
          name: 'door',
          base_url: `${door}/v1`,
          wire_api: 'responses',
          request_max_retries: 0,
          stream_max_retries: 0,
        },
      },
    };
    return {
      command: process.execPath,
      args: [join(folder, 'codex-acp.mjs')],
      env: {
        CODEX_HOME: join(home, '.codex'),
        CODEX_PATH: join(folder, 'codex'),
        CODEX_CONFIG: JSON.stringify(config),
        MODEL_PROVIDER: 'door',
        INITIAL_AGENT_MODE: 'agent-full-access',
        NO_BROWSER: '1',
      },
      // Codex does not make its home.
      files: [{ path: join(home, '.codex', 'config.toml'), content: '' }],
    };
  },
  toolOf: (call) => {
    if (call.kind === 'execute') return { name: 'bash', input: { command: call.input['command'] ?? call.name } };
    const [diff, ...more] = call.diffs;
    if (diff === undefined) return { name: call.name, input: call.input };
    if (more.length > 0) return { name: 'apply_patch', input: { changes: call.diffs } };
    const { path: file_path, oldText, newText } = diff;
    return oldText === null
      ? { name: 'write', input: { file_path, content: newText } }
      : { name: 'edit', input: { file_path, old_string: oldText, new_string: newText } };
  },
  resultOf: (call) => ({ text: textOf(call), isError: call.failed }),
  isModels: (messageId) => messageId !== null,
};

function textOf({ kind, text, terminal, failed }: NativeCall): string {
  const { printed, exitCode } = terminal;
  if (kind === 'execute' && failed && exitCode === null)
    return `Outcome unknown: Codex was ended while this ran. Check before doing it again.\n${printed}`;
  if (printed === '' && exitCode === null) return text;
  return exitCode === null || exitCode === 0 ? printed : `${printed}\n[exit code ${exitCode}]`;
}
