import { DropdownMenu } from 'radix-ui';
import type { ComponentProps } from 'react';
import { cn } from './ui.tsx';

export function MenuContent({ className, children, ...rest }: ComponentProps<typeof DropdownMenu.Content>) {
  return (
    <DropdownMenu.Portal>
      <DropdownMenu.Content
        align="end"
        sideOffset={4}
        collisionPadding={8}
        className={cn('z-30 min-w-44 rounded-lg border bg-panel p-1 text-sm shadow-lg', className)}
        {...rest}
      >
        {children}
      </DropdownMenu.Content>
    </DropdownMenu.Portal>
  );
}

const item =
  'flex cursor-default items-center gap-2.5 rounded-md px-2.5 py-1.5 outline-none data-[disabled]:opacity-50 data-[highlighted]:bg-raised aria-[current=page]:font-medium';

export function MenuItem({ className, ...rest }: ComponentProps<typeof DropdownMenu.Item>) {
  return <DropdownMenu.Item className={cn(item, className)} {...rest} />;
}

/** One of several of which one is chosen; goes into a `DropdownMenu.RadioGroup`. */
export function MenuChoice({ className, ...rest }: ComponentProps<typeof DropdownMenu.RadioItem>) {
  return <DropdownMenu.RadioItem className={cn(item, className)} {...rest} />;
}
