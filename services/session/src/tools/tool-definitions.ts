import { createHash } from 'node:crypto';
import {
  type AgentSnapshot,
  type BuiltinTool,
  MCP_TOOL_PREFIX,
  OUTPUTS_PATH,
  type PermissionPolicy,
  type ResolvedToolConfig,
} from '@holdfast/contracts';
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

/** A tool of an MCP server, as the server lists it. */
export interface McpTool {
  readonly name: string;
  readonly description: string;
  readonly inputSchema: Readonly<Record<string, unknown>>;
}
/** What the MCP servers of an agent list, by the server's name; a server that could not be asked is not there. */
export type McpTools = ReadonlyMap<string, readonly McpTool[]>;

/** Providers take no other characters in a tool's name, and none longer. */
const MAX_TOOL_NAME_CHARS = 64;

/**
 * The name under which a model is offered a tool of an MCP server: always the same, never that of another tool. Where
 * the two names do not fit as they are, a hash of them makes up for what is left out.
 */
export function mcpToolName(server: string, tool: string): string {
  const plain = `${MCP_TOOL_PREFIX}${server}__${tool}`;
  if (/^[A-Za-z0-9_-]+$/.test(plain) && plain.length <= MAX_TOOL_NAME_CHARS && !server.includes('__')) return plain;
  const hash = createHash('sha256')
    .update(JSON.stringify([server, tool]))
    .digest('hex')
    .slice(0, 8);
  const kept = plain.replaceAll(/[^A-Za-z0-9_-]/g, '_').slice(0, MAX_TOOL_NAME_CHARS - hash.length - 1);
  return `${kept}_${hash}`;
}

/** What a model must be told to leave its work to the user, of the tools that make files. */
const KEPT = ` What lies below ${OUTPUTS_PATH} when your turn ends is kept for the user to download.`;
const MAKERS: ReadonlySet<string> = new Set(['bash', 'write'] satisfies BuiltinTool[]);

/**
 * The tools that an agent offers its model: the enabled built-ins and MCP tools, and its custom ones. `keepsOutputs` says
 * whether the platform makes files of what lies in the session's outputs folder.
 */
export function offeredTools(agent: AgentSnapshot, mcp: McpTools, keepsOutputs: boolean): ToolDefinition[] {
  return agent.tools.flatMap((tool): ToolDefinition[] => {
    if (tool.type === 'custom')
      return [{ name: tool.name, description: tool.description, inputSchema: tool.input_schema }];
    if (tool.type === 'mcp_toolset')
      return (mcp.get(tool.mcp_server_name) ?? [])
        .filter(({ name }) => mcpToolConfig(tool, name).enabled)
        .map(({ name, ...definition }) => ({ name: mcpToolName(tool.mcp_server_name, name), ...definition }));
    return tool.configs.flatMap((config) => {
      if (!config.enabled || config.name === 'web_search') return [];
      const definition = BUILTINS[config.name];
      const isMaker = keepsOutputs && MAKERS.has(config.name);
      return [isMaker ? { ...definition, description: definition.description + KEPT } : definition];
    });
  });
}

type McpToolset = Extract<AgentSnapshot['tools'][number], { type: 'mcp_toolset' }>;
function mcpToolConfig(toolset: McpToolset, name: string): McpToolset['default_config'] {
  return toolset.configs.find((config) => config.name === name) ?? toolset.default_config;
}

/** How a call is run. */
export type ResolvedCall =
  | { readonly kind: 'custom' }
  | { readonly kind: 'builtin'; readonly policy: PermissionPolicy; readonly config: ResolvedToolConfig }
  | { readonly kind: 'mcp'; readonly policy: PermissionPolicy; readonly server: string; readonly tool: string };

/** How a call by the name that the model was offered is run; null for nothing that the agent has. */
export function resolveCall(agent: AgentSnapshot, name: string, mcp: McpTools): ResolvedCall | null {
  for (const tool of agent.tools) {
    if (tool.type === 'custom') {
      if (tool.name === name) return { kind: 'custom' };
    } else if (tool.type === 'mcp_toolset') {
      const server = tool.mcp_server_name;
      const found = mcp.get(server)?.find((one) => mcpToolName(server, one.name) === name);
      if (found === undefined) continue;
      const { enabled, permission_policy: policy } = mcpToolConfig(tool, found.name);
      if (enabled) return { kind: 'mcp', policy, server, tool: found.name };
    } else {
      const config = tool.configs.find((one) => one.name === name && one.enabled);
      if (config !== undefined) return { kind: 'builtin', policy: config.permission_policy, config };
    }
  }
  return null;
}
