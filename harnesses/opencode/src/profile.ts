import { join } from 'node:path';
import type { HarnessProfile, NativeCall } from '@holdfast/runner';

/** The names of its tools, and of their inputs, as the reference has them. */
const TOOLS: Readonly<Record<string, string>> = { webfetch: 'web_fetch', websearch: 'web_search' };
const INPUTS: Readonly<Record<string, string>> = {
  filePath: 'file_path',
  oldString: 'old_string',
  newString: 'new_string',
  replaceAll: 'replace_all',
};
/** Its permissions, with the reference's tools that each is of. */
const RULES: Readonly<Record<string, readonly string[]>> = {
  bash: ['bash'],
  read: ['read'],
  edit: ['write', 'edit'],
  glob: ['glob'],
  grep: ['grep'],
  webfetch: ['web_fetch'],
  websearch: ['web_search'],
};

/**
 * opencode by its own `opencode acp`. Everything that would reach for the network besides the model door is off, and the
 * door is its only provider: without one that it knows it would ask a hosted model of its vendor.
 */
export const profile: HarnessProfile = {
  command: (start, { folder, home, door }) => {
    const policyOf = (name: string): string => start.tools[name] ?? start.tools['*'] ?? 'off';
    // Of two tools under one permission the stricter counts; one that is off is not offered at all.
    const permissionOf = (names: readonly string[]): string => {
      const policies = names.map(policyOf).filter((policy) => policy !== 'off');
      return policies.length === 0 ? 'deny' : policies.includes('ask') ? 'ask' : 'allow';
    };
    const rules = Object.entries(RULES).map(([rule, names]) => [rule, permissionOf(names)] as const);
    const off = Object.values(RULES)
      .flat()
      .filter((name) => policyOf(name) === 'off');
    const system = join(home, '.holdfast', 'opencode-instructions.md');
    const config = {
      autoupdate: false,
      share: 'disabled',
      snapshot: false,
      enabled_providers: ['door'],
      model: `door/${start.model}`,
      small_model: `door/${start.model}`,
      agent: { title: { disable: true } },
      permission: {
        '*': permissionOf(['*']),
        ...Object.fromEntries(rules),
        external_directory: 'allow',
        doom_loop: 'allow',
        question: 'deny',
      },
      tools: Object.fromEntries(off.map((name) => [nativeName(name), false])),
      ...(start.system === null ? {} : { instructions: [system] }),
      provider: {
        door: {
          npm: '@ai-sdk/openai-compatible',
          name: 'door',
          options: { baseURL: `${door}/v1`, apiKey: 'door' },
          models: {
            [start.model]: {
              name: start.model,
              limit: { context: start.contextTokens, output: start.outputTokens },
            },
          },
        },
      },
    };
    return {
      command: join(folder, 'opencode'),
      args: ['acp'],
      env: {
        OPENCODE_CONFIG_CONTENT: JSON.stringify(config),
        OPENCODE_DISABLE_AUTOUPDATE: '1',
        OPENCODE_DISABLE_MODELS_FETCH: '1',
        OPENCODE_DISABLE_SHARE: '1',
        OPENCODE_DISABLE_LSP_DOWNLOAD: '1',
        OPENCODE_DISABLE_DEFAULT_PLUGINS: '1',
      },
      files: start.system === null ? [] : [{ path: system, content: start.system }],
    };
  },
  toolOf: ({ name, input }) => ({
    name: TOOLS[name] ?? name,
    input: Object.fromEntries(
      Object.entries(input)
        // What it adds of its own.
        .filter(([key]) => !(name === 'bash' && (key === 'cwd' || key === 'description')))
        .map(([key, value]) => [name === 'bash' && key === 'timeout' ? 'timeout_ms' : (INPUTS[key] ?? key), value]),
    ),
  }),
  resultOf: (call) => {
    const exit = exitOf(call);
    return {
      text: exit === null || exit === 0 ? call.text : `${call.text}\n[exit code ${exit}]`,
      isError: call.failed || (exit !== null && exit !== 0),
    };
  },
};

function nativeName(name: string): string {
  return Object.entries(TOOLS).find(([, reference]) => reference === name)?.[0] ?? name;
}

function exitOf({ name, output }: NativeCall): number | null {
  if (name !== 'bash') return null;
  const { exit } = (output as { metadata?: { exit?: unknown } } | undefined)?.metadata ?? {};
  return typeof exit === 'number' ? exit : null;
}
