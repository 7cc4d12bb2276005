import type { AgentSnapshot, BuiltinTool, PermissionPolicy, ResolvedToolConfig } from '@holdfast/contracts';
import type { ToolDefinition } from '../model/model.port.ts';

const object = (properties: Record<string, unknown>, required: string[]) => ({
  type: 'object',
  properties,
  required,
  additionalProperties: false,
});
const string = (description: string) => ({ type: 'string', description });

/** The built-in tools as the model sees them; the inputs are the reference's (wire contract §2.1). */
const BUILTINS: Readonly<Record<Exclude<BuiltinTool, 'web_search'>, ToolDefinition>> = {
  bash: {
    name: 'bash',
    description:
      'Run a shell command in the sandbox. Working directory, variables and functions stay between calls, and so does what runs in the background. Long output is cut; the cut names a file with all of it.',
    inputSchema: object(
      {
        command: string('The command to run.'),
        restart: {
          type: 'boolean',
          description: 'First end what earlier calls left running, and start a fresh shell.',
        },
        timeout_ms: { type: 'integer', description: 'Kill the command after this many milliseconds.' },
      },
      [],
    ),
  },
  read: {
    name: 'read',
    description: 'Read a text file of the sandbox, with line numbers.',
    inputSchema: object(
      {
        file_path: string('Absolute path, or relative to the workspace.'),
        view_range: {
          type: 'array',
          items: { type: 'integer' },
          minItems: 2,
          maxItems: 2,
          description: 'First and last line, from 1; -1 = the end.',
        },
      },
      ['file_path'],
    ),
  },
  write: {
    name: 'write',
    description: 'Write a file in the sandbox, replacing what is there; folders are made.',
    inputSchema: object({ file_path: string('Where to write.'), content: string('The whole new content.') }, [
      'file_path',
      'content',
    ]),
  },
  edit: {
    name: 'edit',
    description: 'Replace text in a file. old_string must occur exactly once unless replace_all is true.',
    inputSchema: object(
      {
        file_path: string('The file.'),
        old_string: string('The text to replace, exactly.'),
        new_string: string('The text to put there.'),
        replace_all: { type: 'boolean', description: 'Replace every occurrence.' },
      },
      ['file_path', 'old_string', 'new_string'],
    ),
  },
  glob: {
    name: 'glob',
    description: 'List files whose path matches a glob pattern, newest first.',
    inputSchema: object({ pattern: string('For example src/**/*.ts'), path: string('Folder to start in.') }, [
      'pattern',
    ]),
  },
  grep: {
    name: 'grep',
    description: 'Search files for a regular expression (extended syntax).',
    inputSchema: object({ pattern: string('The expression.'), path: string('File or folder to search.') }, ['pattern']),
  },
  web_fetch: {
    name: 'web_fetch',
    description: 'Fetch a public web page or file by URL and read it as text.',
    inputSchema: object({ url: string('An http or https URL.') }, ['url']),
  },
};

/** The tools that an agent offers its model: the enabled built-ins and its custom ones. */
export function offeredTools(agent: AgentSnapshot): ToolDefinition[] {
  const offered: ToolDefinition[] = [];
  for (const tool of agent.tools) {
    if (tool.type === 'custom') {
      offered.push({ name: tool.name, description: tool.description, inputSchema: tool.input_schema });
      continue;
    }
    for (const config of tool.configs) {
      if (config.enabled && config.name !== 'web_search') offered.push(BUILTINS[config.name]);
    }
  }
  return offered;
}

/** How a call by that name is run: a custom tool, an enabled built-in with its policy, or nothing the agent has. */
export function resolveCall(
  agent: AgentSnapshot,
  name: string,
): { kind: 'custom' } | { kind: 'builtin'; policy: PermissionPolicy; config: ResolvedToolConfig } | null {
  for (const tool of agent.tools) {
    if (tool.type === 'custom') {
      if (tool.name === name) return { kind: 'custom' };
      continue;
    }
    const config = tool.configs.find((one) => one.name === name && one.enabled);
    if (config !== undefined) return { kind: 'builtin', policy: config.permission_policy, config };
  }
  return null;
}
