import { join } from 'node:path';
import type { HarnessProfile } from '@holdfast/runner';

/** Its tools under the reference's names. */
const TOOLS: Readonly<Record<string, string>> = {
  ...{ Bash: 'bash', Read: 'read', Write: 'write', Edit: 'edit', Glob: 'glob', Grep: 'grep' },
  ...{ WebFetch: 'web_fetch', WebSearch: 'web_search' },
};
/** What it has beyond them. */
const OTHERS = ['Agent', 'NotebookEdit', 'Skill', 'TodoWrite', 'Workflow'];
/** For somebody that sits before it. */
const NEVER = ['AskUserQuestion', 'EnterPlanMode', 'ExitPlanMode', 'ScheduleWakeup'];

/**
 * Claude Code behind its ACP adapter, both of which the operator installed: neither comes with the platform. The model is
 * the agent's for whatever it asks, and each tool's rule stands before what a workspace may set.
 */
export const profile: HarnessProfile = {
  command: (start, { folder, home, door }) => {
    const own = join(home, '.claude');
    const policyOf = (name: string): string => start.tools[TOOLS[name] ?? '*'] ?? start.tools['*'] ?? 'off';
    const rules = (policy: string): string[] =>
      [...Object.keys(TOOLS), ...OTHERS].filter((name) => policyOf(name) === policy);
    const permissions = { allow: rules('allow'), ask: rules('ask'), deny: [...rules('off'), ...NEVER] };
    const model = start.model;
    return {
      command: process.execPath,
      args: [join(folder, 'node_modules', '@agentclientprotocol', 'claude-agent-acp', 'dist', 'index.js')],
      env: {
        CLAUDE_CONFIG_DIR: own,
        ANTHROPIC_BASE_URL: door,
        ANTHROPIC_AUTH_TOKEN: 'door',
        ANTHROPIC_MODEL: model,
        ANTHROPIC_SMALL_FAST_MODEL: model,
        ANTHROPIC_DEFAULT_HAIKU_MODEL: model,
        ANTHROPIC_DEFAULT_SONNET_MODEL: model,
        ANTHROPIC_DEFAULT_OPUS_MODEL: model,
        CLAUDE_CODE_MAX_CONTEXT_TOKENS: String(start.contextTokens),
        CLAUDE_CODE_MAX_OUTPUT_TOKENS: String(start.outputTokens),
        CLAUDE_CODE_MAX_RETRIES: '0',
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
        CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK: '1',
        // It would ask the model what the user may say next.
        CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION: 'false',
        DISABLE_AUTOUPDATER: '1',
        DISABLE_ERROR_REPORTING: '1',
        DISABLE_TELEMETRY: '1',
        IS_SANDBOX: '1',
      },
      files: [{ path: join(own, 'settings.json'), content: JSON.stringify({ permissions }) }],
      ...(start.system === null ? {} : { sessionMeta: { systemPrompt: { append: start.system } } }),
    };
  },
  toolOf: ({ name, input }) => ({
    name: TOOLS[name] ?? name,
    input: Object.fromEntries(
      Object.entries(input)
        // What it adds of its own.
        .filter(([key]) => !(name === 'Bash' && key === 'description'))
        .map(([key, value]) => [name === 'Bash' && key === 'timeout' ? 'timeout_ms' : key, value]),
    ),
  }),
  beginsUntold: true,
  isEnd: (message) => /process exited/.test(message),
  resultOf: ({ name, text, output, failed }) => {
    const told = typeof output === 'string' ? output : text;
    const [first = '', code] = (name === 'Bash' && failed && /^Exit code (\d+)\n?/.exec(told)) || [];
    return { text: code === undefined ? told : `${told.slice(first.length)}\n[exit code ${code}]`, isError: failed };
  },
};
