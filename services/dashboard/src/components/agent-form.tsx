'use client';
import {
  type Agent,
  BUILTIN_TOOLS,
  type BuiltinTool,
  createAgentBody,
  HARNESS_METADATA_KEY,
  HARNESS_NATIVE,
  type ToolParam,
  toolParam,
} from '@holdfast/contracts';
import { useQuery } from '@tanstack/react-query';
import { useId, useState } from 'react';
import { api, messageOf } from '../lib/api.ts';
import { useCapabilities } from '../lib/platform-status.ts';
import { Button, Field, FormError, Input, Select, TextArea } from './ui.tsx';

type Permission = 'off' | 'always_allow' | 'always_ask';
const OFFERED = BUILTIN_TOOLS.filter((name) => name !== 'web_search');
const EXAMPLE = [
  {
    type: 'custom',
    name: 'get_weather',
    description: 'The weather in a city, now.',
    input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
];
const ABOUT: Readonly<Partial<Record<BuiltinTool, string>>> = {
  bash: 'run commands',
  read: 'read files',
  write: 'write files',
  edit: 'change files',
  glob: 'find files',
  grep: 'search in files',
  web_fetch: 'fetch web pages',
};

function permissionsOf(agent: Agent | undefined): Record<string, Permission> {
  const toolset = agent?.tools.find((tool) => tool.type === 'agent_toolset_20260401');
  return Object.fromEntries(
    OFFERED.map((name) => {
      const config = toolset?.configs.find((one) => one.name === name);
      if (agent === undefined) return [name, 'always_allow'];
      return [name, config?.enabled === true ? config.permission_policy.type : 'off'];
    }),
  );
}

/** The toolsets of MCP servers, which the form does not show. */
function mcpToolsetsOf(agent: Agent | undefined): ToolParam[] {
  return (agent?.tools ?? []).flatMap((tool) =>
    tool.type === 'mcp_toolset' ? [{ ...tool, configs: [...tool.configs] }] : [],
  );
}

/** Fields that the form does not show (a tool's domains) are kept as they are. */
function toolsOf(agent: Agent | undefined, permissions: Record<string, Permission>, custom: ToolParam[]): ToolParam[] {
  const before = agent?.tools.find((tool) => tool.type === 'agent_toolset_20260401');
  const others = [...mcpToolsetsOf(agent), ...custom];
  if (OFFERED.every((name) => permissions[name] === 'off')) return others;
  return [
    {
      type: 'agent_toolset_20260401',
      configs: OFFERED.map((name) => {
        const { allowed_domains, blocked_domains, max_content_tokens } =
          before?.configs.find((one) => one.name === name) ?? {};
        return {
          name,
          enabled: permissions[name] !== 'off',
          permission_policy: {
            type: permissions[name] === 'always_ask' ? ('always_ask' as const) : ('always_allow' as const),
          },
          ...(allowed_domains == null ? {} : { allowed_domains: [...allowed_domains] }),
          ...(blocked_domains == null ? {} : { blocked_domains: [...blocked_domains] }),
          ...(max_content_tokens == null ? {} : { max_content_tokens }),
        };
      }),
    },
    ...others,
  ];
}

export function AgentForm(props: {
  agent?: Agent;
  action: string;
  busy: boolean;
  disabled?: boolean;
  error: unknown;
  onSubmit: (body: object) => void;
}) {
  const { agent } = props;
  const listId = useId();
  const models = useQuery({
    queryKey: ['models'],
    queryFn: ({ signal }) => api<{ data: { id: string }[] }>('/v1/models', { signal }),
    staleTime: 60_000,
  });
  const [name, setName] = useState(agent?.name ?? '');
  const [model, setModel] = useState(agent?.model.id);
  const [harness, setHarness] = useState(agent?.harness.type ?? HARNESS_NATIVE);
  const [description, setDescription] = useState(agent?.description ?? '');
  const [system, setSystem] = useState(agent?.system ?? '');
  const [permissions, setPermissions] = useState(() => permissionsOf(agent));
  const [customText, setCustomText] = useState(() => {
    const custom = agent?.tools.filter((tool) => tool.type === 'custom') ?? [];
    return custom.length === 0 ? '' : JSON.stringify(custom, null, 2);
  });
  const [faults, setFaults] = useState<Record<string, string>>({});
  const chosenModel = model ?? models.data?.data[0]?.id ?? '';

  const submit = () => {
    const custom = parseCustomTools(customText);
    if (typeof custom === 'string') return setFaults({ custom });
    const body = {
      name: name.trim(),
      model: agent !== undefined && chosenModel === agent.model.id ? agent.model : chosenModel.trim(),
      harness: agent !== undefined && harness === agent.harness.type ? agent.harness : { type: harness },
      description: description === '' ? null : description,
      system: system === '' ? null : system,
      tools: toolsOf(agent, permissions, custom),
    };
    const checked = createAgentBody.safeParse(body);
    setFaults(
      checked.success
        ? {}
        : Object.fromEntries(checked.error.issues.map((issue) => [String(issue.path[0] ?? 'form'), issue.message])),
    );
    // Metadata that name a harness must name the one that was chosen.
    const isNamed = agent?.metadata[HARNESS_METADATA_KEY] !== undefined;
    if (checked.success) props.onSubmit(isNamed ? { ...body, metadata: { [HARNESS_METADATA_KEY]: harness } } : body);
  };

  return (
    <form
      className="min-w-0"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <fieldset disabled={props.disabled === true} className="min-w-0 space-y-5 p-5">
        <div className="grid grid-cols-1 gap-5 sm:grid-cols-2">
          <Field label="Name" error={faults['name']}>
            <Input value={name} onChange={(event) => setName(event.target.value)} required maxLength={256} />
          </Field>
          <Field
            label="Model"
            error={faults['model']}
            hint={
              models.isError
                ? `The gateway cannot be asked for its models: ${messageOf(models.error)}`
                : 'As your gateway names it.'
            }
          >
            <Input list={listId} value={chosenModel} onChange={(event) => setModel(event.target.value)} required />
          </Field>
        </div>
        <HarnessField value={harness} onChange={setHarness} />
        <datalist id={listId}>
          {models.data?.data.map(({ id }) => (
            <option key={id} value={id}>
              {id}
            </option>
          ))}
        </datalist>
        <Field label="Description" error={faults['description']}>
          <Input value={description} onChange={(event) => setDescription(event.target.value)} maxLength={4096} />
        </Field>
        <Field label="Instructions" hint="The system prompt." error={faults['system']}>
          <TextArea
            className="field-sizing-content max-h-[60dvh] min-h-40"
            value={system}
            onChange={(event) => setSystem(event.target.value)}
          />
        </Field>
        <div role="group" aria-label="Tools" className="space-y-2">
          <p className="text-sm font-medium">Tools</p>
          <div className="divide-y rounded-lg border">
            {OFFERED.map((tool) => (
              <div key={tool} className="flex items-center gap-3 px-3 py-1.5 text-sm">
                <code className="w-20 shrink-0 font-mono text-xs">{tool}</code>
                <span className="min-w-0 flex-1 truncate text-soft">{ABOUT[tool]}</span>
                <Select
                  className="w-32 shrink-0"
                  aria-label={`May the agent use ${tool}?`}
                  value={permissions[tool]}
                  onChange={(event) => setPermissions({ ...permissions, [tool]: event.target.value as Permission })}
                >
                  <option value="always_allow">allowed</option>
                  <option value="always_ask">asks first</option>
                  <option value="off">off</option>
                </Select>
              </div>
            ))}
          </div>
        </div>
        <Field
          label="Custom tools"
          error={faults['custom'] ?? faults['tools']}
          hint={
            <>
              A JSON list; your client answers their calls, or you do in the chat.{' '}
              {customText === '' ? (
                <button
                  type="button"
                  className="text-accent underline underline-offset-2"
                  onClick={() => setCustomText(JSON.stringify(EXAMPLE, null, 2))}
                >
                  Insert an example
                </button>
              ) : null}
            </>
          }
        >
          <TextArea
            className="field-sizing-content max-h-[60dvh] min-h-16 font-mono text-xs"
            value={customText}
            placeholder="[]"
            onChange={(event) => setCustomText(event.target.value)}
            spellCheck={false}
          />
        </Field>
      </fieldset>
      {props.disabled === true ? null : (
        <div className="sticky bottom-0 space-y-3 rounded-b-xl border-t bg-panel px-5 py-3">
          {props.error == null && faults['form'] === undefined ? null : (
            <FormError text={faults['form'] ?? messageOf(props.error)} />
          )}
          <div className="flex justify-end">
            <Button look="primary" type="submit" busy={props.busy}>
              {props.action}
            </Button>
          </div>
        </div>
      )}
    </form>
  );
}

/** What runs the agent's turns. One that an agent has and the platform has not any more is still shown. */
function HarnessField(props: { value: string; onChange: (type: string) => void }) {
  const { data } = useCapabilities();
  const known = data?.harnesses ?? [{ type: HARNESS_NATIVE, version: null }];
  const isMissing = data !== undefined && known.every(({ type }) => type !== props.value);
  const shown = known.some(({ type }) => type === props.value)
    ? known
    : [...known, { type: props.value, version: null }];
  return (
    <Field
      label="Harness"
      error={isMissing ? 'This platform does not have it now.' : undefined}
      hint={
        props.value !== HARNESS_NATIVE
          ? 'A coding harness in the session’s sandbox, with the model above. It takes no custom tools and no MCP servers yet.'
          : known.length > 1
            ? 'The platform’s own loop; it needs no sandbox to answer.'
            : 'The platform’s own loop. It was given no coding harness: see HARNESSES in the documentation.'
      }
    >
      <Select value={props.value} onChange={(event) => props.onChange(event.target.value)}>
        {shown.map(({ type, version }) => (
          <option key={type} value={type}>
            {type}
            {version === null ? '' : ` ${version}`}
          </option>
        ))}
      </Select>
    </Field>
  );
}

/** The tools, or what is wrong with the text. */
function parseCustomTools(text: string): ToolParam[] | string {
  if (text.trim() === '') return [];
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return 'This is not JSON.';
  }
  const parsed = toolParam.array().safeParse(value);
  if (!parsed.success) return parsed.error.issues[0]?.message ?? 'These are not tools.';
  return parsed.data.some((tool) => tool.type !== 'custom') ? 'Only tools of type "custom" belong here.' : parsed.data;
}
